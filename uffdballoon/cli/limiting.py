# SPDX-License-Identifier: GPL-2.0-or-later
"""Change what a guest may have of its RAM."""

from __future__ import annotations

import click

from uffdballoon.cli.output import print_json, say
from uffdballoon.cli.text.changes import progress_line
from uffdballoon.cli.text.policy import change_lines
from uffdballoon.cli.types import PID, SIZE
from uffdballoon.daemon import client
from uffdballoon.model.records.balloon import LimitChange


@click.command()
@click.argument("pid", type=PID)
@click.argument("size", type=SIZE)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def limit(pid: int, size: int, *, as_json: bool) -> None:
    """Let the guest of the attached PID have SIZE of its RAM at most.

    Its contract has to be cap; what the limit leaves of its RAM is the floor. A balloon driver,
    where there is one, is asked for that at the same time, and is not waited for.

    Example: uffdballoon limit 4711 2G
    """
    change = client.request(pid, "limit", LimitChange, size=size)
    if as_json:
        print_json(change)
        return
    for line in change_lines(change.policy):
        say(line)
    if change.driver is None:
        say("there is no balloon driver that could be asked: the limit is held as it is")
    else:
        say(progress_line(change.driver))
