# SPDX-License-Identifier: GPL-2.0-or-later
"""Lift all traps for a time, and set them again."""

from __future__ import annotations

import click

from uffdballoon.cli.output import print_json, say
from uffdballoon.cli.types import DURATION_NS, PID
from uffdballoon.daemon import client
from uffdballoon.model.durations import format_duration
from uffdballoon.model.records.changes import TakenUp, Yielded
from uffdballoon.model.sizes import format_size


@click.command("yield")
@click.argument("pid", type=PID)
@click.option(
    "--for",
    "for_ns",
    type=DURATION_NS,
    default="10m",
    show_default=True,
    help="They are set again after so long at the latest; 24h at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def yield_(pid: int, *, for_ns: int, as_json: bool) -> None:
    """Lift all traps of the attached PID for a time.

    QEMU refuses the capability background-snapshot while anything is trapped: yield, set it, and
    take the snapshot. The traps are set again when that has ended, by `take-up`, or when the time
    is up. What the guest touches meanwhile is its own.

    Example: uffdballoon yield 4711 --for 5m
    """
    done = client.request(pid, "yield", Yielded, for_ns=for_ns)
    if as_json:
        print_json(done)
        return
    say(
        f"nothing is trapped for {format_duration(done.for_ns)} at most; "
        f"{format_size(done.ballooned_bytes)} are in the balloon still"
    )


@click.command("take-up")
@click.argument("pid", type=PID)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def take_up(pid: int, *, as_json: bool) -> None:
    """Set all traps of the attached PID again, after `yield`."""
    done = client.request(pid, "take-up", TakenUp)
    if as_json:
        print_json(done)
        return
    say(f"trapped again; {format_size(done.given_bytes)} were touched meanwhile: the guest's now")
