# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.blockmaps import block_map
from uffdballoon.cli.text.blocks import COLOURS, block_rows, words_of
from uffdballoon.cli.text.map import Paper, fit, picture
from uffdballoon.model.addresses import HUGE_BYTES, Gpa
from uffdballoon.model.blockmap import BlockMap, Region
from uffdballoon.model.blockstate import BlockState

_LOW = Region(Gpa(0), b"HHsBp.a!" * 20)
_HIGH = Region(Gpa(4 << 30), b"B" * 70)
_TERABYTE = Region(Gpa(0), b"HHHB" * (1 << 17))


def draw(blocks: BlockMap, width: int, *, colour: bool, lines: int | None = None) -> list[str]:
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        legacy_windows=False,
    )
    console.print(picture(blocks, Paper(width, lines, colour)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_letters_are_the_blocks_in_order_with_their_gpa() -> None:
    lines = draw(block_map(_LOW, _HIGH), 80, colour=False)
    assert lines[0].split() == ["0x0", _LOW.letters[:32].decode()]
    assert lines[1].split() == ["0x4000000", _LOW.letters[32:64].decode()]
    assert lines[5].strip().startswith("no RAM for ")
    assert lines[6].split() == ["0x100000000", "B" * 32]
    assert lines[8].split() == ["0x108000000", "B" * 6]


def test_half_blocks_show_two_rows_a_line_in_their_colours() -> None:
    blocks = block_map(Region(Gpa(0), b"H" * 32 + b"B" * 32))
    lines = draw(blocks, 80, colour=True)
    upper, lower = (
        ";".join(str(value) for value in bytes.fromhex(COLOURS[state][1:]))
        for state in (BlockState.OWNED_THP, BlockState.BALLOONED)
    )
    # The first of a pair is the character's colour, the second its background's.
    assert f"\x1b[38;2;{upper};48;2;{lower}m" + "▀" * 32 in lines[0]
    assert not any("▀" in line for line in lines[1:])


def test_where_there_is_no_ram_nothing_is_painted() -> None:
    (line, *_) = draw(block_map(Region(Gpa(0), b"H" * 30)), 60, colour=True)
    assert line.count("▀") == 30
    assert "48;2" not in line


def test_the_legend_names_and_counts_every_state() -> None:
    blocks = block_map(_LOW, _HIGH)
    for colour in (True, False):
        text = " ".join(draw(blocks, 200, colour=colour))
        for state, count in blocks.counts().items():
            assert f"{words_of(state, 60.0)} {count}" in text


def test_rows_of_the_table_tell_broken_whole_and_untouched() -> None:
    assert block_rows(block_map(_LOW)) == [("pc.ram", "1", "2", "3")]


@given(st.integers(1, 200), st.booleans())
def test_no_line_is_wider_than_the_terminal(width: int, colour: bool) -> None:  # noqa: FBT001
    paper = Paper(width, None, colour)
    grid = fit(block_map(_LOW, _HIGH), paper)
    assert grid.columns <= max(1, width - len(f"{_HIGH.span.end:#x}") - 1)
    if not colour:
        assert all(len(line) <= width for line in draw(block_map(_LOW, _HIGH), width, colour=False))


@pytest.mark.parametrize("lines", [2, 10, 40])
@pytest.mark.parametrize("blocks", [block_map(_LOW, _HIGH), block_map(_TERABYTE)])
@pytest.mark.parametrize("colour", [True, False])
def test_a_guest_of_any_size_fits_the_screen(
    blocks: BlockMap,
    lines: int,
    colour: bool,  # noqa: FBT001
) -> None:
    grid = fit(blocks, Paper(80, lines, colour))
    shown = len(draw(blocks, 80, colour=colour, lines=lines))
    below = len(draw(block_map(Region(Gpa(0), b"H")), 80, colour=colour)) - 1
    assert shown <= max(lines, 3) + below
    assert grid.row_bytes * len(grid.rows) >= blocks.ram_bytes


def test_one_block_alone_is_drawn() -> None:
    (line, *_) = draw(block_map(Region(Gpa(7 * HUGE_BYTES), b"B")), 80, colour=False)
    assert line.split() == ["0x0", "B"]
