# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a range of the guest's memory lies in the target, in whole granules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, GpaRange, Hva
from uffdballoon.model.granule import Granule
from uffdballoon.model.place import place
from uffdballoon.model.ram import Backing, Layout, RamBlock, Segment

_LOW = 1 << 30  # below the hole, which is as large
# Its huge pages do not begin where the guest's do.
_RAM = RamBlock("ram", Hva(0x7F00_0010_0000), 3 << 30, PAGE_BYTES, Backing.ANON, shared=False)
_HUGE = RamBlock("huge", Hva(0x7E00_0000_0000), 1 << 30, HUGE_BYTES, Backing.HUGETLBFS, shared=True)
_HUGE_GPA = 8 << 30
_LAYOUT = Layout(
    (
        Segment(Gpa(0), _LOW, _RAM, 0),
        Segment(Gpa(2 << 30), 2 << 30, _RAM, _LOW),
        Segment(Gpa(_HUGE_GPA), 1 << 30, _HUGE, 0),
    ),
    source="test",
)


@given(st.integers(0, (1 << 30) - 1), st.integers(1, 1 << 25), st.sampled_from(Granule))
def test_what_is_placed_and_what_is_left_out_are_the_range(
    offset: int, size_bytes: int, granule: Granule
) -> None:
    span = GpaRange.of((2 << 30) + offset, size_bytes)
    try:
        placed = place(_LAYOUT, span, granule)
    except RangeError:
        assert size_bytes < 2 * granule.size_bytes
        return
    assert placed.block is _RAM
    assert placed.hva.start % granule.size_bytes == placed.hva.end % granule.size_bytes == 0
    assert _LAYOUT.to_hva(placed.gpa) == (placed.hva, _RAM)
    pieces = sorted([placed.gpa, *placed.left_out])
    assert (pieces[0].start, pieces[-1].end) == (span.start, span.end)
    assert sum(piece.size_bytes for piece in pieces) == span.size_bytes


@pytest.mark.parametrize(
    ("start", "size_bytes", "granule"),
    [
        (0, 0, Granule.SMALL),
        (4096, -4096, Granule.SMALL),
        (1, PAGE_BYTES, Granule.SMALL),
        (0, HUGE_BYTES, Granule.THP),  # whole to the guest, and two halves on the host
        (_LOW - PAGE_BYTES, 2 * PAGE_BYTES, Granule.SMALL),
        (_LOW, PAGE_BYTES, Granule.SMALL),
    ],
)
def test_a_range_without_a_whole_granule_of_ram_is_refused_with_a_hint(
    start: int, size_bytes: int, granule: Granule
) -> None:
    with pytest.raises(RangeError) as refused:
        place(_LAYOUT, GpaRange.of(start, size_bytes), granule)
    assert refused.value.hint


@pytest.mark.parametrize("granule", [Granule.SMALL, Granule.THP])
def test_hugetlbfs_memory_comes_in_its_own_pages_only(granule: Granule) -> None:
    span = GpaRange.of(_HUGE_GPA, HUGE_BYTES)
    with pytest.raises(UsageError, match="no pages of"):
        place(_LAYOUT, span, granule)
    placed = place(_LAYOUT, span, Granule.HUGE2M)
    assert (placed.block, placed.gpa, placed.left_out) == (_HUGE, span, ())


@pytest.mark.parametrize(
    ("start", "size_bytes", "granule"),
    [
        (0, PAGE_BYTES - 1, Granule.SMALL),
        (0, HUGE_BYTES, Granule.THP),
        (_HUGE_GPA, HUGE_BYTES - PAGE_BYTES, Granule.HUGE2M),
    ],
)
def test_the_hint_does_not_advise_what_was_given_and_what_it_advises_is_taken(
    start: int, size_bytes: int, granule: Granule
) -> None:
    with pytest.raises(RangeError) as refused:
        place(_LAYOUT, GpaRange.of(start, size_bytes), granule)
    assert f"--granule {granule.value}" not in refused.value.hint
    place(_LAYOUT, GpaRange.of(start, 2 * granule.size_bytes), granule)
    if granule is not Granule.SMALL:
        assert "at least 4 MiB" in refused.value.hint
    assert ("--granule 4k" in refused.value.hint) == (granule is Granule.THP)
