# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the state of an attached target."""

from __future__ import annotations

import click

from uffdballoon.cli.output import print_json, print_table
from uffdballoon.cli.text.status import status_rows
from uffdballoon.cli.types import PID
from uffdballoon.daemon import client


@click.command()
@click.argument("pid", type=PID)
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def status(pid: int, *, as_json: bool) -> None:
    """Show the balloon of the attached PID, and what its guest did."""
    state = client.status(pid)
    if as_json:
        print_json(state)
    else:
        print_table(("", ""), status_rows(state))
