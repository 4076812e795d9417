# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.blockmaps import block_map, letters
from uffdballoon.daemon.protocol import MAX_ANSWER_BYTES, encode
from uffdballoon.errors import ControlError
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, GpaRange, Hva
from uffdballoon.model.blockgrid import NO_RAM, choose_columns, count_rows, lay_out, merge_cells
from uffdballoon.model.blockmap import BlockMap, Region, cells_of, count_states, regions_of
from uffdballoon.model.blockstate import BlockState, decode_runs, encode_runs
from uffdballoon.model.ram import Backing, RamBlock, Segment
from uffdballoon.model.records.encoding import parse, read
from uffdballoon.model.records.maps import WireMap, WireRegion

_GIB_BLOCKS = (1 << 30) // HUGE_BYTES

cells = st.lists(st.sampled_from(list(BlockState)), min_size=1, max_size=300).map(letters)


@st.composite
def regions(draw: st.DrawFn) -> tuple[Region, ...]:
    found, at = [], 0
    for piece in draw(st.lists(cells, min_size=1, max_size=4)):
        at += draw(st.integers(1, 500))
        found.append(Region(Gpa(at * HUGE_BYTES), piece))
        at += len(piece)
    return tuple(found)


def test_every_state_has_a_letter_of_its_own() -> None:
    assert len({state.letter for state in BlockState}) == len(BlockState)
    assert not any(state.letter.isdigit() or state.letter == " " for state in BlockState)


@given(cells)
def test_runs_are_undone_by_their_inverse(some: bytes) -> None:
    assert "".join(letter * count for letter, count in decode_runs(encode_runs(some))) == (
        some.decode()
    )


@given(regions())
def test_a_map_goes_over_the_wire_and_back(some: tuple[Region, ...]) -> None:
    sent = block_map(*some)
    assert BlockMap.from_wire(read(parse(encode(sent.to_wire())), WireMap)) == sent


@given(regions())
def test_the_runs_of_the_json_cover_every_block_once(some: tuple[Region, ...]) -> None:
    shown = block_map(*some).report()
    for region, told in zip(some, shown.regions, strict=True):
        at = told.gpa
        for run in told.runs:
            assert run.gpa == at
            at += run.size
        assert at == region.span.end
    assert sum(shown.states.values()) == sum(len(region.letters) for region in some)


def test_a_terabyte_in_which_no_two_neighbours_are_alike_fits_an_answer() -> None:
    blocks = 1024 * _GIB_BLOCKS
    mixed = letters(random.Random(1).choices(list(BlockState), k=blocks))  # noqa: S311
    worst = block_map(Region(Gpa(0), mixed))
    assert len(encode({"ok": True, "result": worst.to_wire()})) < MAX_ANSWER_BYTES // 8
    assert BlockMap.from_wire(worst.to_wire()) == worst


def test_a_state_of_another_version_is_refused_by_name() -> None:
    wire = block_map(Region(Gpa(0), b"HH")).to_wire()
    wire = replace(wire, regions=(WireRegion(gpa=0, runs="2Z"),))
    with pytest.raises(ControlError) as refused:
        BlockMap.from_wire(wire)
    assert refused.value.hint


def _segment(block: RamBlock, gpa: int, size_bytes: int, offset_bytes: int) -> Segment:
    return Segment(Gpa(gpa), size_bytes, block, offset_bytes)


def test_firmwares_cuts_leave_no_gap_and_the_pci_hole_does() -> None:
    ram = RamBlock("pc.ram", Hva(1 << 40), 4 << 30, 4096, Backing.ANON, shared=False)
    low = _segment(ram, 0, 0xC0000, 0)
    middle = _segment(ram, 0x100000, (3 << 30) - 0x100000, 0x100000)
    high = _segment(ram, 4 << 30, 1 << 30, 3 << 30)
    assert regions_of((low, middle, high)) == [
        GpaRange.of(0, 3 << 30),
        GpaRange.of(4 << 30, 1 << 30),
    ]


def test_the_cells_of_a_ram_block_are_its_own_each_once() -> None:
    one = RamBlock("ram0", Hva(1 << 40), 8 << 20, 4096, Backing.ANON, shared=False)
    two = RamBlock("ram1", Hva(1 << 41), 4 << 20, 4096, Backing.ANON, shared=False)
    # The guest's few pages of firmware in the first block cut it in two, in the middle of a cell.
    segments = (
        _segment(one, 0, PAGE_BYTES, 0),
        _segment(one, 2 * PAGE_BYTES, (8 << 20) - 2 * PAGE_BYTES, 2 * PAGE_BYTES),
        _segment(two, 8 << 20, 4 << 20, 0),
    )
    picture = [Region(Gpa(0), b"HsBp!.")]
    assert cells_of(segments[:2], picture) == [b"HsBp"]
    assert cells_of(segments[2:], picture) == [b"!."]
    assert count_states([b"Hs", b"HB"])[BlockState.OWNED_THP] == 2


@given(regions(), st.integers(0, 8), st.integers(0, 4))
def test_a_grid_shows_each_block_at_its_place(
    some: tuple[Region, ...], columns_shift: int, scale_shift: int
) -> None:
    columns, scale = 1 << columns_shift, 1 << scale_shift
    grid = lay_out(some, columns, scale)
    assert len(grid.rows) == count_rows(some, columns, scale)
    assert all(row.gpa % grid.row_bytes == 0 and len(row.cells) == columns for row in grid.rows)
    by_gpa = {row.gpa: row.cells for row in grid.rows}
    shown = {
        row.gpa + place * grid.cell_bytes
        for row in grid.rows
        for place, cell in enumerate(row.cells)
        if cell != NO_RAM
    }
    ram = {
        block // scale * scale * HUGE_BYTES
        for region in some
        for block in range(region.gpa // HUGE_BYTES, region.span.end // HUGE_BYTES)
    }
    assert shown == ram
    if scale == 1:
        for region in some:
            for number, letter in enumerate(region.letters):
                gpa = region.gpa + number * HUGE_BYTES
                row = gpa // grid.row_bytes * grid.row_bytes
                assert by_gpa[Gpa(row)][(gpa - row) // HUGE_BYTES] == letter


@given(regions(), st.integers(1, 500))
def test_columns_are_a_power_of_two_that_fits(some: tuple[Region, ...], most: int) -> None:
    columns = choose_columns(some, most)
    assert 1 <= columns <= most
    assert columns & (columns - 1) == 0


def test_a_touch_is_not_lost_among_many_blocks() -> None:
    assert merge_cells(b"HHHHHHH!") == ord("!")
    assert merge_cells(b"HHHss") == ord("H")
    assert merge_cells(b"HHpp") == ord("p")
    assert merge_cells(b"   H") == ord("H")
    assert merge_cells(b"  ") == NO_RAM
