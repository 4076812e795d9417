# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import RangeError
from uffdballoon.model.addresses import Gpa, GpaRange, Hva
from uffdballoon.model.ram import Backing, Layout, RamBlock, Segment

_BLOCK = RamBlock("pc.ram", Hva(0x7F0000000000), 5 << 30, 4096, Backing.ANON, shared=False)
_LOW = 3 << 30
LAYOUT = Layout(
    (
        Segment(Gpa(4 << 30), 2 << 30, _BLOCK, _LOW),
        Segment(Gpa(0), _LOW, _BLOCK, 0),
    ),
    source="test",
)


@given(st.integers(0, (5 << 30) - 1))
def test_translation_is_undone_by_its_inverse(offset: int) -> None:
    gpa = Gpa(offset if offset < _LOW else offset + (1 << 30))
    hva, block = LAYOUT.to_hva(GpaRange.of(gpa, 1))
    assert block is _BLOCK
    assert hva.start == _BLOCK.hva + offset
    assert LAYOUT.to_gpa(hva.start) == gpa


@pytest.mark.parametrize(
    ("start", "size_bytes"),
    [(_LOW, 4096), (_LOW - 4096, 8192), (0, 5 << 30), (6 << 30, 1), ((6 << 30) - 1, 2)],
)
def test_what_is_in_the_hole_or_crosses_it_is_refused(start: int, size_bytes: int) -> None:
    with pytest.raises(RangeError) as refused:
        LAYOUT.to_hva(GpaRange.of(start, size_bytes))
    assert refused.value.hint


def test_an_hva_outside_of_ram_has_no_gpa() -> None:
    assert LAYOUT.to_gpa(Hva(0x1000)) is None


def test_each_block_counts_once() -> None:
    assert LAYOUT.blocks == (_BLOCK,)
    assert LAYOUT.ram_bytes == 5 << 30
