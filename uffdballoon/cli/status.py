# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the state of an attached target."""

from __future__ import annotations

from dataclasses import replace

import click
from msgspec import UNSET

from uffdballoon.cli.output import print_json, print_table
from uffdballoon.cli.text.spans import range_rows
from uffdballoon.cli.text.status import status_rows
from uffdballoon.cli.types import PID
from uffdballoon.daemon import client
from uffdballoon.daemon.requests import MAX_TOLD_RANGES
from uffdballoon.model.records.spans import BalloonRanges

_MOST_RANGES = 100


@click.command()
@click.argument("pid", type=PID)
@click.option("--ranges", is_flag=True, help="Show the ranges that are in the balloon, too.")
@click.option(
    "--most-ranges",
    type=click.IntRange(min=0, max=MAX_TOLD_RANGES),
    metavar="N",
    help=f"Show so many of them, and how many more there are.  [default: {_MOST_RANGES}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(pid: int, *, ranges: bool, most_ranges: int | None, as_json: bool) -> None:
    """Show the balloon of the attached PID, and what its guest did."""
    state = client.status(pid)
    if ranges or most_ranges is not None:
        most = _MOST_RANGES if most_ranges is None else most_ranges
        state = replace(state, ranges=client.request(pid, "ranges", BalloonRanges, most=most))
    if as_json:
        print_json(state)
        return
    print_table(("", ""), status_rows(state))
    if state.ranges is not UNSET:
        print_table(("", ""), range_rows(state.ranges))
