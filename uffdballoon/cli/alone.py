# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of `attach` that mean nothing without another, or against it: refused, not ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from uffdballoon.cli.monitor_choice import AUTO, NONE
from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LEAST_EVENTS_BYTES = 4096
"""A limit for a file of events that a few of them fit into."""
LEAST_RATE_BYTES_PER_S = HUGE_BYTES
"""A huge page a second."""


def refuse_alone(options: Mapping[str, object]) -> None:
    """Raise UsageError for what was typed and has no effect; ``options`` are by name."""
    if options["on_exit"] != "hold":
        _refuse("hold_ns", "--hold-for", "--on-exit hold", "nothing is held otherwise")
    if options["events_to"] is None:
        for name, option in (
            ("events_format", "--events-format"),
            ("events_limit", "--events-limit"),
        ):
            _refuse(name, option, "--events", "no events are written otherwise")
    if options["without_monitor"] and options["qmp"] not in {None, AUTO, NONE}:
        raise UsageError(
            "--qmp and --without-monitor do not go together",
            why="one names a monitor, the other does without",
            hint="give one of them",
        )


def at_least(
    least_bytes: int,
) -> Callable[[click.Context, click.Parameter, int], int]:
    """Return what refuses a smaller size, a callback of click's."""

    def check(_context: click.Context, parameter: click.Parameter, value: int) -> int:
        if value < least_bytes:
            raise UsageError(
                f"{parameter.opts[0]} {format_size(value)} is too little",
                why=f"it is {format_size(least_bytes)} or more",
                hint="leave it out, or give such as 64M",
            )
        return value

    return check


def _refuse(name: str, option: str, beside: str, why: str) -> None:
    source = click.get_current_context().get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        raise UsageError(
            f"{option} has no effect without {beside}", why=why, hint=f"give {beside}, too"
        )
