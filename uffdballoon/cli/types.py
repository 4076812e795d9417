# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs, sizes, addresses, durations and ladders as command-line arguments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from uffdballoon.cli.monitor_choice import AUTO, NONE, parse_qmp
from uffdballoon.cli.output import say
from uffdballoon.errors import UsageError
from uffdballoon.model.durations import parse_duration
from uffdballoon.model.fragmentation import parse_broken
from uffdballoon.model.ofnodes import parse_node_part, parse_of_node
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.sizes import parse_address, parse_size
from uffdballoon.vmm.qemu.libvirt_domain import WORD
from uffdballoon.vmm.qemu.naming import resolve, running_vms
from uffdballoon.vmm.qemu.suitability import ALLOWABLE, parse_allowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from click import ParamType
else:

    class ParamType(click.ParamType):
        """Takes the type of its values; click's own does since 8.4 only."""

        def __class_getitem__(cls, _value_type: object) -> type:
            return cls


T = TypeVar("T")

# Colons part words in a shell's completion, and click's own answer to it has lines.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]{0,63}", re.ASCII)


class Parsed(ParamType[T]):
    """What ``parse`` makes of a text, and a value that is none already."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> T:
        return self._parse(value) if isinstance(value, str) else cast("T", value)


class Vm(ParamType[int]):
    """The pid of a VM, given by its pid or its name; looked for when it is given, not before."""

    name = "pid"

    def get_metavar(
        self,
        param: click.Parameter,  # noqa: ARG002 - click's
        ctx: click.Context | None = None,  # noqa: ARG002 - not given before click 8.2
    ) -> str:
        return "PID|NAME"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> int:
        return resolve(value, say=say) if isinstance(value, str) else cast("int", value)

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer pids, and names that a shell takes as they are."""
        items = []
        for pid, names in running_vms():
            plain = [name for name in names if _PLAIN.fullmatch(name)]
            words = {str(pid): ", ".join(plain)} | dict.fromkeys(plain, f"pid {pid}")
            items += [
                CompletionItem(word, help=about or None)
                for word, about in words.items()
                if word.startswith(incomplete)
            ]
        return items


def _of_node(parse: Callable[[str], int]) -> Callable[[str], tuple[int, int]]:
    """Read what holds for a NUMA node of the guest."""
    return lambda text: parse_of_node(text, parse)


def _no_memory(text: str) -> int:
    """Read what becomes of a touch without a page: 0, or nanoseconds until the end."""
    word, given, duration = text.partition("=")
    if word not in {"wait", "kill"} or (given and word == "wait"):
        raise UsageError(
            f"--on-no-memory {text} is not known",
            why="it is wait, kill, or kill=DURATION",
            hint="such as --on-no-memory kill=30s",
        )
    if word == "wait":
        return 0
    return max(1, parse_duration(duration)) if given else 1


ALLOWED = Parsed(",".join(ALLOWABLE), parse_allowed)
BROKEN = Parsed("N|SIZE", parse_broken)
NODE_BROKEN = Parsed("NODE=N|SIZE", _of_node(parse_broken))
NODE_SIZE = Parsed("NODE=SIZE", _of_node(parse_size))
NODE_PART = Parsed("NODE[=SIZE]", parse_node_part)
NO_MEMORY = Parsed("wait|kill[=DURATION]", _no_memory)
SIZE = Parsed("SIZE", parse_size)
ADDRESS = Parsed("ADDRESS", parse_address)
LADDER = Parsed("LADDER", parse_policy)
DURATION_NS = Parsed("DURATION", parse_duration)
PID = Vm()
QMP = Parsed(f"PATH|{WORD}|URI|{AUTO}|{NONE}", parse_qmp)
