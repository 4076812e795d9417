# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes, addresses, durations and ladders as command-line arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import click

from uffdballoon.errors import UsageError
from uffdballoon.model.durations import parse_duration
from uffdballoon.model.fragmentation import parse_broken
from uffdballoon.model.ofnodes import parse_of_node
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.sizes import parse_address, parse_size
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


class Parsed(ParamType[T]):
    """What ``parse`` makes of a text, and a value that is none already."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> T:
        return self._parse(value) if isinstance(value, str) else cast("T", value)


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
NO_MEMORY = Parsed("wait|kill[=DURATION]", _no_memory)
SIZE = Parsed("SIZE", parse_size)
ADDRESS = Parsed("ADDRESS", parse_address)
LADDER = Parsed("LADDER", parse_policy)
DURATION_NS = Parsed("DURATION", parse_duration)
PID = click.IntRange(min=1)
