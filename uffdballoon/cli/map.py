# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the guest's memory as a picture."""

from __future__ import annotations

import click
from rich.console import Console

from uffdballoon.bench.drawing import pyplot_or_refuse, refuse_unless_picture
from uffdballoon.cli.map_picture import draw_blocks
from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.cli.text.blocks import block_rows
from uffdballoon.cli.text.map import Paper, picture
from uffdballoon.cli.types import DURATION_NS, PID
from uffdballoon.daemon import client
from uffdballoon.model.blockmap import BlockMap
from uffdballoon.model.origin import Origin
from uffdballoon.model.records.maps import WireMap
from uffdballoon.model.sizes import format_size

_BELOW = 12
"""Lines of a screen that are for the legend, the table and the next prompt."""


def ask_for_map(pid: int, recent_ns: int) -> BlockMap:
    """Ask the manager of PID what each block is; touches of ``recent_ns`` are shown."""
    return BlockMap.from_wire(client.request(pid, "map", WireMap, recent_s=recent_ns / 1e9))


@click.command("map")
@click.argument("pid", type=PID)
@click.option("--json", "as_json", is_flag=True, help="Print the map as JSON.")
@click.option("--png", "png_to", metavar="FILE", help="Draw it there (.png, .svg).")
@click.option("--full", is_flag=True, help="Show every 2 MiB, however many screens that takes.")
@click.option(
    "--recent",
    "recent_ns",
    type=DURATION_NS,
    default="60s",
    show_default=True,
    help="How long a block counts as touched.",
)
def map_(pid: int, *, as_json: bool, png_to: str | None, full: bool, recent_ns: int) -> None:
    """Show what each 2 MiB of the guest of the attached PID is.

    Example: uffdballoon map 4711 --png map.png
    """
    if png_to is not None:
        pyplot_or_refuse()
        refuse_unless_picture(png_to)
    blocks = ask_for_map(pid, recent_ns)
    if png_to is not None:
        draw_blocks(blocks, png_to)
        say(f"drawn: {png_to}")
    if as_json:
        print_json(blocks.report())
    elif png_to is None:
        _show(blocks, full=full)


def _show(blocks: BlockMap, *, full: bool) -> None:
    console = Console()
    click.echo(f"{Origin(blocks.pid, blocks.vm).shown}, {format_size(blocks.allocated_bytes)}")
    lines = None if full or not console.is_terminal else max(4, console.height - _BELOW)
    console.print(picture(blocks, Paper.of(console, lines=lines)))
    header = ("RAM block", "broken", "whole", "untouched")
    rows = block_rows(blocks)
    print_table(header, rows)
