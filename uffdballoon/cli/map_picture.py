# SPDX-License-Identifier: GPL-2.0-or-later
"""A block map as a picture file; needs the extra `plots`."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.drawing import pyplot_or_refuse, save
from uffdballoon.cli.text.blocks import COLOURS, words_of
from uffdballoon.model.blockgrid import NO_RAM, choose_columns, lay_out
from uffdballoon.model.blockstate import STATE_OF_BYTE, BlockState
from uffdballoon.model.origin import Origin
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.model.blockgrid import Grid
    from uffdballoon.model.blockmap import BlockMap

_COLOURS = {**COLOURS, BlockState.ABSENT: "#dfe3e8"}  # it is white paper
_MOST_COLUMNS = 1024
_MOST_LABELS = 17
_SHAPE = 2.0
_FEW = 64
"""Columns up to which a line is drawn between cells."""


def draw_blocks(blocks: BlockMap, path: str) -> None:
    """Draw every block as a cell, with what the colours mean and how many there are."""
    pyplot = pyplot_or_refuse()
    grid = lay_out(blocks.regions, choose_columns(blocks.regions, _MOST_COLUMNS, _SHAPE))
    inches = 10.0
    height = max(1.2, min(14.0, inches * len(grid.rows) / grid.columns))
    figure, axis = pyplot.subplots(figsize=(inches + 1.2, height + 1.9), layout="constrained")
    axis.imshow(_pixels(grid), aspect="auto", interpolation="nearest")
    if grid.columns <= _FEW:
        axis.set_xticks([x - 0.5 for x in range(1, grid.columns)], minor=True)
        axis.set_yticks([y - 0.5 for y in range(1, len(grid.rows))], minor=True)
        axis.grid(which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="both", length=0, labelsize=8)
    _label(axis, grid)
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.suptitle(
        f"Memory of the guest {Origin(blocks.pid, blocks.vm).shown}: "
        f"{format_size(blocks.allocated_bytes)}, "
        f"a cell is {format_size(grid.cell_bytes)} of guest-physical memory\n"
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d %H:%M:%S} UTC",
        fontsize=11,
    )
    _add_legend(figure, blocks)
    save(figure, path)
    pyplot.close(figure)


def _pixels(grid: Grid) -> list[list[tuple[int, ...]]]:
    colours = {letter: _rgb(_COLOURS[state]) for letter, state in STATE_OF_BYTE.items()}
    colours[NO_RAM] = (255, 255, 255)
    return [[colours[cell] for cell in row.cells] for row in grid.rows]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def _label(axis: Any, grid: Grid) -> None:  # noqa: ANN401 - of matplotlib
    """Give the gpa of rows, and what is added to it along a row."""
    step = max(1, -(-len(grid.rows) // _MOST_LABELS))
    after_hole = {
        y
        for y in range(1, len(grid.rows))
        if grid.rows[y].gpa != grid.rows[y - 1].gpa + grid.row_bytes
    }
    places = sorted({*range(0, len(grid.rows), step), *after_hole})
    axis.set_yticks(places, [f"{grid.rows[y].gpa:#x}" for y in places], family="monospace")
    axis.set_ylabel("gpa of the row", fontsize=9)
    for y in after_hole:
        axis.axhline(y - 0.5, color="black", linewidth=1.0, linestyle=(0, (4, 3)))
    columns = range(0, grid.columns, max(1, grid.columns // 8))
    offsets = [f"+{format_size(x * grid.cell_bytes)}" if x else "+0" for x in columns]
    axis.set_xticks(list(columns), offsets)
    axis.xaxis.tick_top()


def _add_legend(figure: Any, blocks: BlockMap) -> None:  # noqa: ANN401 - of matplotlib
    from matplotlib.patches import Patch  # noqa: PLC0415 - an extra

    counts = blocks.counts()
    figure.legend(
        handles=[
            Patch(
                color=_COLOURS[state],
                label=f"{words_of(state, blocks.recent_s)}: {counts[state]}",
            )
            for state in BlockState
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        frameon=False,
    )
