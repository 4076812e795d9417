# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and JSON on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from uffdballoon.model.records.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def say(line: str) -> None:
    """Tell a person how things go, on standard error; nobody who listens is no error."""
    with contextlib.suppress(OSError):
        click.echo(f"uffdballoon: {line}", err=True)


def print_json(value: object) -> None:
    click.echo(to_json(value, indent=2))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on a terminal, and tab-separated columns elsewhere."""
    # Most verbs print none, and an eighth of the time in which they start was for these.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        for row in [header, *rows] if any(header) else rows:
            click.echo("\t".join(row))
        return
    table = Table(show_header=any(header), box=None, pad_edge=False)
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: brackets would be markup
    console.print(table)
