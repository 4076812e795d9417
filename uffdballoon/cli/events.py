# SPDX-License-Identifier: GPL-2.0-or-later
"""Show touches that were not ordinary, and what else happened."""

from __future__ import annotations

import click

from uffdballoon.cli.text.events import event_line
from uffdballoon.cli.types import PID
from uffdballoon.daemon import client
from uffdballoon.model.records.encoding import to_json


@click.command()
@click.argument("pid", type=PID)
@click.option("--follow", is_flag=True, help="Then go on with others as they come.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def events(pid: int, *, follow: bool, as_json: bool) -> None:
    """Show the last 1000 events of the attached PID."""
    source = client.follow(pid) if follow else iter(client.recent_events(pid))
    for event in source:
        click.echo(to_json(event) if as_json else event_line(event))
