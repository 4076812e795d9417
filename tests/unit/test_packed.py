# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges as words: nothing is taken twice, nothing is left out."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.packed import PackedRanges, RangeQueue

_pages = st.lists(st.integers(1, 3000), min_size=1, max_size=40)


def _spread(pages: list[int]) -> list[HvaRange]:
    """Lay ranges out one after the other, with a page between them."""
    ranges, at = [], 7 * PAGE_BYTES
    for count in pages:
        ranges.append(HvaRange.of(Hva(at), count * PAGE_BYTES))
        at += (count + 1) * PAGE_BYTES
    return ranges


@given(pages=_pages, most_pages=st.integers(1, 4000), most_ranges=st.integers(1, 9))
def test_what_is_taken_is_all_of_it_once(
    pages: list[int], most_pages: int, most_ranges: int
) -> None:
    ranges = _spread(pages)
    queue = RangeQueue(PackedRanges.of(ranges))
    taken: list[HvaRange] = []
    while queue:
        part = queue.take(most_pages * PAGE_BYTES, most_ranges)
        assert 1 <= len(part) <= most_ranges
        assert len(part) == 1 or part.size_bytes <= most_pages * PAGE_BYTES
        # A cut is made at the next border of 2 MiB only.
        assert part.size_bytes < most_pages * PAGE_BYTES + HUGE_BYTES
        taken.extend(part.unpacked())
    joined: list[HvaRange] = []
    for span in taken:
        if joined and joined[-1].end == span.start:
            joined[-1] = HvaRange(joined[-1].start, span.end)
        else:
            joined.append(span)
    assert joined == ranges


@given(pages=_pages)
def test_the_kernel_finds_starts_and_lengths(pages: list[int]) -> None:
    ranges = _spread(pages)
    packed = PackedRanges.of(ranges)
    assert packed.size_bytes == sum(span.size_bytes for span in ranges)
    assert packed.as_bytes() == b"".join(
        struct.pack("<QQ", span.start, span.size_bytes) for span in ranges
    )


def test_every_second_page_is_half_of_them() -> None:
    span = HvaRange.of(Hva(HUGE_BYTES), HUGE_BYTES)
    packed = PackedRanges.strided(span, PAGE_BYTES, 2 * PAGE_BYTES)
    assert len(packed) == 256
    assert packed.size_bytes == HUGE_BYTES // 2
    assert packed.unpacked()[:2] == [
        HvaRange.of(Hva(HUGE_BYTES), PAGE_BYTES),
        HvaRange.of(Hva(HUGE_BYTES + 2 * PAGE_BYTES), PAGE_BYTES),
    ]
