# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes, addresses, durations and ladders as command-line arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from uffdballoon.contract.policy import Policy, parse_policy
from uffdballoon.errors import UsageError
from uffdballoon.model.durations import parse_duration
from uffdballoon.model.fragmentation import parse_broken
from uffdballoon.model.ofnodes import parse_of_node
from uffdballoon.model.sizes import parse_address, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable


class SizeType(click.ParamType[int]):
    name = "SIZE"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> int:
        return value if isinstance(value, int) else parse_size(str(value))


class AddressType(click.ParamType[int]):
    name = "ADDRESS"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> int:
        return value if isinstance(value, int) else parse_address(str(value))


class LadderType(click.ParamType[Policy]):
    name = "LADDER"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> Policy:
        return value if isinstance(value, Policy) else parse_policy(str(value))


class DurationType(click.ParamType[int]):
    name = "DURATION"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> int:
        return value if isinstance(value, int) else parse_duration(str(value))


class NoMemoryType(click.ParamType[int]):
    """What becomes of a touch that the host has no page for: 0, or nanoseconds until the end."""

    name = "wait|kill[=DURATION]"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        word, given, duration = str(value).partition("=")
        if word not in {"wait", "kill"} or (given and word == "wait"):
            raise UsageError(
                f"--on-no-memory {value} is not known",
                why="it is wait, kill, or kill=DURATION",
                hint="such as --on-no-memory kill=30s",
            )
        if word == "wait":
            return 0
        return max(1, parse_duration(duration)) if given else 1


class BrokenType(click.ParamType[int]):
    name = "N|SIZE"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> int:
        return value if isinstance(value, int) else parse_broken(str(value))


class OfNodeType(click.ParamType[tuple[int, int]]):
    """What holds for a NUMA node of the guest; read by ``parse``."""

    def __init__(self, value_name: str, parse: Callable[[str], int]) -> None:
        self.name = f"NODE={value_name}"
        self._parse = parse

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> tuple[int, int]:
        return parse_of_node(str(value), self._parse)


BROKEN = BrokenType()
NODE_BROKEN = OfNodeType("N|SIZE", parse_broken)
NODE_SIZE = OfNodeType("SIZE", parse_size)
NO_MEMORY = NoMemoryType()
SIZE = SizeType()
ADDRESS = AddressType()
LADDER = LadderType()
DURATION_NS = DurationType()
PID = click.IntRange(min=1)
