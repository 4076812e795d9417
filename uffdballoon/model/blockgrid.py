# SPDX-License-Identifier: GPL-2.0-or-later
"""A block map laid out in rows: gpa left to right and top to bottom."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import HUGE_BYTES, Gpa
from uffdballoon.model.blockstate import STATE_OF_BYTE, BlockState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from uffdballoon.model.blockmap import Region

NO_RAM = ord(" ")
_TOUCHED = ord(BlockState.TOUCHED.letter)
_ORDER = {letter: place for place, letter in enumerate(STATE_OF_BYTE)}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of cells, letters of BlockState or NO_RAM; rows begin at multiples of their size."""

    gpa: Gpa
    cells: bytes


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows in order; those without any RAM are left out."""

    columns: int
    blocks_per_cell: int
    rows: tuple[Row, ...]

    @property
    def cell_bytes(self) -> int:
        return self.blocks_per_cell * HUGE_BYTES

    @property
    def row_bytes(self) -> int:
        return self.columns * self.cell_bytes


def lay_out(regions: Sequence[Region], columns: int, blocks_per_cell: int = 1) -> Grid:
    """Lay out all blocks, ``blocks_per_cell`` of them as one cell."""
    row_blocks = columns * blocks_per_cell
    rows: dict[int, bytearray] = {}
    for region in regions:
        first = region.gpa // HUGE_BYTES
        for number in _row_numbers(region, row_blocks):
            row = rows.setdefault(number, bytearray([NO_RAM]) * row_blocks)
            start = max(number * row_blocks, first)
            end = min((number + 1) * row_blocks, first + len(region.letters))
            at = start - number * row_blocks
            row[at : at + end - start] = region.letters[start - first : end - first]
    return Grid(
        columns,
        blocks_per_cell,
        tuple(
            Row(Gpa(number * row_blocks * HUGE_BYTES), _merged(bytes(row), blocks_per_cell))
            for number, row in sorted(rows.items())
        ),
    )


def count_rows(regions: Iterable[Region], columns: int, blocks_per_cell: int = 1) -> int:
    """Count the rows that lay_out() would make."""
    row_blocks = columns * blocks_per_cell
    spans = (_row_numbers(region, row_blocks) for region in regions)
    # Two regions may share a row: the last of one is the first of the next.
    count, last = 0, -1
    for span in spans:
        count += len(span) - (span.start == last)
        last = span.stop - 1
    return count


def choose_columns(regions: Sequence[Region], most: int, shape: float = 4.0) -> int:
    """Choose how wide to draw: a power of two, at most ``most``; ``shape`` is width to height."""
    blocks = max(1, sum(len(region.letters) for region in regions))
    wanted = 1 << max(5, math.ceil(math.log2(math.sqrt(shape * blocks))))
    return min(wanted, 1 << max(0, most.bit_length() - 1))


def merge_cells(letters: bytes) -> int:
    """Choose one letter for several blocks: touched when one is, else what the most are."""
    if _TOUCHED in letters:
        return _TOUCHED
    counts = Counter(letters.replace(b" ", b""))
    return max(counts, key=lambda letter: (counts[letter], _ORDER[letter]), default=NO_RAM)


def _merged(letters: bytes, count: int) -> bytes:
    if count == 1:
        return letters
    pieces = (letters[at : at + count] for at in range(0, len(letters), count))
    return bytes(merge_cells(piece) for piece in pieces)


def _row_numbers(region: Region, row_blocks: int) -> range:
    first = region.gpa // HUGE_BYTES
    return range(first // row_blocks, (first + len(region.letters) - 1) // row_blocks + 1)
