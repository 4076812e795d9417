# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask the guest's balloon driver for a size, and watch it get there."""

from __future__ import annotations

import math
import time

import click

from uffdballoon.cli.output import print_json, say
from uffdballoon.cli.text.changes import progress_line
from uffdballoon.cli.types import DURATION_NS, PID, SIZE
from uffdballoon.daemon import client
from uffdballoon.errors import ExitCode, UsageError
from uffdballoon.model.records.balloon import BalloonProgress, ProgressState

_FAILED = (ProgressState.STALLED, ProgressState.STOPPED)
_POLL_S = 0.2
_TELL_EVERY_S = 1.0


@click.command("set")
@click.argument("pid", type=PID)
@click.option(
    "--balloon",
    "size",
    type=SIZE,
    required=True,
    metavar="SIZE",
    help="What the guest shall have left, as QEMU's own `balloon` command counts it.",
)
@click.option(
    "--within",
    "within_ns",
    type=DURATION_NS,
    metavar="DURATION",
    help="Wait no longer than that; the driver goes on all the same.",
)
@click.option("--no-wait", is_flag=True, help="Ask, and do not watch.")
@click.option("--json", "as_json", is_flag=True, help="Print where it ended as JSON.")
def set_(pid: int, *, size: int, within_ns: int | None, no_wait: bool, as_json: bool) -> int:
    """Ask the guest of the attached PID to shrink or grow to SIZE.

    Holds it to that. Waits until it is there, and ends with 1 and the reason when it gets
    no further, or is not there in time.

    Example: uffdballoon set 4711 --balloon 2G
    """
    if no_wait and within_ns is not None:
        raise UsageError(
            "--within and --no-wait contradict each other",
            why="the one waits so long, the other not at all",
            hint="give one of them",
        )
    progress = client.request(pid, "set", BalloonProgress, size=size)
    told = time.monotonic()
    until = math.inf if within_ns is None else told + within_ns / 1e9
    while _is_moving(progress) and not no_wait and time.monotonic() < until:
        time.sleep(_POLL_S)
        progress = client.request(pid, "progress", BalloonProgress)
        if time.monotonic() - told >= _TELL_EVERY_S and not as_json:
            say(progress_line(progress))
            told = time.monotonic()
    if as_json:
        print_json(progress)
    else:
        say(progress_line(progress))
    late = _is_moving(progress) and not no_wait
    if late:
        say("it is not there in time, and goes on")
    return int(ExitCode.FAILED if late or progress.state in _FAILED else ExitCode.DONE)


def _is_moving(progress: BalloonProgress) -> bool:
    return progress.state is ProgressState.MOVING
