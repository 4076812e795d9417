# SPDX-License-Identifier: GPL-2.0-or-later
"""A block map in a terminal: half-block characters in colour, or letters without.

A half-block character is two cells, the upper one in the colour of the character
and the lower one in that of its background.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Group
from rich.style import Style
from rich.text import Text

from uffdballoon.cli.text.blocks import COLOURS, words_of
from uffdballoon.model.blockgrid import NO_RAM, choose_columns, count_rows, lay_out
from uffdballoon.model.blockstate import STATE_OF_BYTE, BlockState
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, RenderableType

    from uffdballoon.model.blockgrid import Grid, Row
    from uffdballoon.model.blockmap import BlockMap

_UPPER, _LOWER = "▀", "▄"


@dataclass(frozen=True, slots=True)
class Paper:
    """What there is to draw on; ``lines`` None for as many as it takes."""

    width: int
    lines: int | None
    colour: bool

    @classmethod
    def of(cls, console: Console, *, lines: int | None) -> Paper:
        """See what a console can show: letters where it has no colours or no half blocks."""
        colour = (
            console.is_terminal
            and console.color_system is not None
            and not console.no_color
            and console.encoding.startswith("utf")
        )
        return cls(console.width, lines, colour)


def picture(blocks: BlockMap, paper: Paper) -> RenderableType:
    """Draw the cells, as many blocks to each as it takes to fit, and what they mean."""
    grid = fit(blocks, paper)
    return Group(*_lines(grid, paper), *_scale(grid), legend(blocks, paper))


def fit(blocks: BlockMap, paper: Paper) -> Grid:
    """Choose columns and scale by the width and the number of lines."""
    label = _label_width(blocks)
    columns = choose_columns(blocks.regions, max(1, paper.width - label - 1))
    scale = 1
    if paper.lines is not None:
        # Another line is spent on each hole.
        most = max(1, paper.lines - len(blocks.regions) + 1) * (2 if paper.colour else 1)
        while scale < 1 << 30 and count_rows(blocks.regions, columns, scale) > most:
            scale *= 2
    return lay_out(blocks.regions, columns, scale)


def legend(blocks: BlockMap, paper: Paper) -> RenderableType:
    """Name every state with the number of its blocks."""
    counts = blocks.counts()
    entries = []
    for state in BlockState:
        words = f"{words_of(state, blocks.recent_s)} {counts[state]}"
        if paper.colour:
            entries.append(Text.assemble(("■ ", COLOURS[state]), words))
        else:
            entries.append(Text(f"{state.letter} {words}"))
    return Columns(entries, padding=(0, 2))


def _label_width(blocks: BlockMap) -> int:
    return max((len(f"{region.span.end:#x}") for region in blocks.regions), default=3)


def _lines(grid: Grid, paper: Paper) -> Iterator[Text]:
    label = max((len(f"{row.gpa + grid.row_bytes:#x}") for row in grid.rows), default=3)
    rows_per_line = 2 if paper.colour else 1
    end = None
    for rows in _lines_of_rows(grid, rows_per_line):
        gpa = min(row.gpa for row in rows)
        if end is not None and gpa > end:
            yield Text(f"{'':>{label}} no RAM for {format_size(gpa - end)}", style="dim")
        text = Text(no_wrap=True, overflow="crop")
        text.append(f"{gpa:#x}".rjust(label) + " ", style="dim")
        if paper.colour:
            _append_half_blocks(text, *_pair(grid, rows))
        else:
            text.append(rows[0].cells.decode().rstrip())
        yield text
        end = rows[-1].gpa + grid.row_bytes


def _lines_of_rows(grid: Grid, count: int) -> Iterator[list[Row]]:
    """Group the rows of which one line is made; pairs begin at an even one."""
    for _, rows in itertools.groupby(grid.rows, lambda row: row.gpa // grid.row_bytes // count):
        yield list(rows)


def _pair(grid: Grid, rows: Sequence[Row]) -> tuple[bytes, bytes]:
    nothing = bytes([NO_RAM]) * grid.columns
    by_place = {row.gpa // grid.row_bytes % 2: row.cells for row in rows}
    return by_place.get(0, nothing), by_place.get(1, nothing)


def _append_half_blocks(text: Text, upper: bytes, lower: bytes) -> None:
    for (above, below), run in itertools.groupby(zip(upper, lower, strict=True)):
        count = sum(1 for _ in run)
        if above == NO_RAM and below == NO_RAM:
            text.append(" " * count)
        elif above == NO_RAM:
            text.append(_LOWER * count, Style(color=_colour(below)))
        else:
            background = None if below == NO_RAM else _colour(below)
            style = Style(color=_colour(above), bgcolor=background)
            text.append(_UPPER * count, style)


def _colour(letter: int) -> str:
    return COLOURS[STATE_OF_BYTE[letter]]


def _scale(grid: Grid) -> Iterator[Text]:
    yield Text(
        f"a cell is {format_size(grid.cell_bytes)}, a row {format_size(grid.row_bytes)}"
        + ("" if grid.blocks_per_cell == 1 else "; shown is what the most of its blocks are"),
        style="dim",
    )
