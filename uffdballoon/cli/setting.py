# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask the guest's balloon driver for a size, and watch it get there."""

from __future__ import annotations

import time

import click

from uffdballoon.cli.output import print_json, say
from uffdballoon.cli.text.changes import progress_line
from uffdballoon.cli.types import PID, SIZE
from uffdballoon.daemon import client
from uffdballoon.errors import ExitCode
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
@click.option("--no-wait", is_flag=True, help="Ask, and do not watch.")
@click.option("--json", "as_json", is_flag=True, help="Print where it ended as JSON.")
def set_(pid: int, *, size: int, no_wait: bool, as_json: bool) -> int:
    """Ask the guest of the attached PID to shrink or grow to SIZE.

    Holds it to that. Waits until it is there, and ends with 1 and the reason when it gets
    no further.

    Example: uffdballoon set 4711 --balloon 2G
    """
    progress = client.request(pid, "set", BalloonProgress, size=size)
    told = time.monotonic()
    while progress.state is ProgressState.MOVING and not no_wait:
        time.sleep(_POLL_S)
        progress = client.request(pid, "progress", BalloonProgress)
        if time.monotonic() - told >= _TELL_EVERY_S and not as_json:
            say(progress_line(progress))
            told = time.monotonic()
    if as_json:
        print_json(progress)
    else:
        say(progress_line(progress))
    return int(ExitCode.FAILED if progress.state in _FAILED else ExitCode.DONE)
