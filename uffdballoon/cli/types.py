# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes, addresses, durations and ladders as command-line arguments."""

from __future__ import annotations

import click

from uffdballoon.contract.policy import Policy, parse_policy
from uffdballoon.model.durations import parse_duration
from uffdballoon.model.sizes import parse_address, parse_size


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


SIZE = SizeType()
ADDRESS = AddressType()
LADDER = LadderType()
DURATION_NS = DurationType()
PID = click.IntRange(min=1)
