# SPDX-License-Identifier: GPL-2.0-or-later
"""All of a guest's memory is looked at piece by piece, each once, at its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tests.support.guest_ram import huge_page_of, pages_of, ram_block
from uffdballoon.balloon import blocks as module
from uffdballoon.balloon.blocks import look_at_blocks
from uffdballoon.core.ledger import Ledger
from uffdballoon.model.addresses import HUGE_BYTES, Gpa, GpaRange, HvaRange
from uffdballoon.model.blockstate import BlockState
from uffdballoon.model.job import run_job
from uffdballoon.model.ram import Layout, RamBlock, Segment

if TYPE_CHECKING:
    from uffdballoon.balloon.enforcer import Enforcer
    from uffdballoon.model.blockmap import BlockMap

_G = 1 << 30
_HOLE_END = 4 * _G


class _Cells:
    """Notes what is looked at; a block is ballooned where its number is a multiple of three."""

    looks: list[tuple[int, HvaRange]]

    def __init__(self, span: GpaRange) -> None:
        self._span = span

    def add(self, _loop: object, gpa: int, span: HvaRange) -> None:
        assert self._span.start <= gpa
        assert gpa + span.size_bytes <= self._span.end
        self.looks.append((gpa, span))

    def letters(self, _since_ns: int) -> bytes:
        numbers = range(self._span.start // HUGE_BYTES, self._span.end // HUGE_BYTES)
        return b"".join(b"." if number % 3 else b"B" for number in numbers)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, HvaRange]]:
    _Cells.looks = []
    monkeypatch.setattr(module, "Cells", _Cells)
    return _Cells.looks


def _split(block: RamBlock, low_bytes: int) -> Layout:
    """Lay a block below and above the PCI hole."""
    high = Segment(Gpa(_HOLE_END), block.size_bytes - low_bytes, block, low_bytes)
    return Layout((Segment(Gpa(0), low_bytes, block, 0), high), source="made up")


def _look(layout: Layout, ledger: Ledger) -> BlockMap:
    enforcer = cast(
        "Enforcer", SimpleNamespace(loop=SimpleNamespace(look=lambda: None), ledger=ledger)
    )
    return run_job(look_at_blocks(enforcer, layout, pid=4711, recent_s=2.5))


def test_every_byte_is_looked_at_once_in_pieces_of_a_gibibyte(
    looks: list[tuple[int, HvaRange]],
) -> None:
    block = ram_block(huge_pages=(5 << 30) // HUGE_BYTES + 1)
    layout = _split(block, 3 * _G)
    _look(layout, Ledger([block]))
    assert all(span.size_bytes <= _G for _, span in looks)
    assert [span.start for _, span in looks[1:]] == [span.end for _, span in looks[:-1]]
    assert (looks[0][1].start, looks[-1][1].end) == (block.hva, block.hva_range.end)
    assert all(layout.to_gpa(span.start) == gpa for gpa, span in looks)


@pytest.mark.usefixtures("looks")
def test_the_map_has_a_region_on_each_side_of_the_hole() -> None:
    block = ram_block(huge_pages=16)
    found = _look(_split(block, 10 * HUGE_BYTES), Ledger([block]))
    assert [(r.gpa, len(r.letters)) for r in found.regions] == [(0, 10), (_HOLE_END, 6)]
    assert (found.pid, found.recent_s, found.ram_bytes) == (4711, 2.5, 16 * HUGE_BYTES)


@pytest.mark.usefixtures("looks")
def test_a_ram_block_has_its_tally_and_the_states_of_its_cells() -> None:
    block = ram_block(huge_pages=16)
    ledger = Ledger([block])
    ledger.set(huge_page_of(block, 1, 3))
    ledger.set(pages_of(block, 0))
    (told,) = _look(_split(block, 10 * HUGE_BYTES), ledger).ram_blocks
    assert (told.idstr, told.size, told.broken, told.whole) == ("ram0", 16 * HUGE_BYTES, 1, 3)
    assert told.states[BlockState.BALLOONED] == 4 + 2
    assert sum(told.states.values()) == 16
