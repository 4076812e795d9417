# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.granule import Granule, round_inward


@given(st.integers(0, 1 << 30), st.integers(1, 1 << 25), st.sampled_from(Granule))
def test_rounding_inward_never_grows_and_leaves_nothing_unsaid(
    start: int, size_bytes: int, granule: Granule
) -> None:
    span = HvaRange.of(start, size_bytes)
    whole, left_out = round_inward(span, granule)
    pieces = sorted([*left_out, *([whole] if whole else [])])
    assert pieces[0].start == span.start
    assert pieces[-1].end == span.end
    for before, after in itertools.pairwise(pieces):
        assert before.end == after.start
    if whole:
        assert whole.start % granule.size_bytes == 0
        assert whole.size_bytes % granule.size_bytes == 0
    else:
        assert left_out == (span,)


def test_huge_pages_of_a_file_are_aligned_in_the_file() -> None:
    file_start = 0x7F00_0012_3000
    span = HvaRange.of(Hva(file_start + PAGE_BYTES), 3 * HUGE_BYTES)
    whole, left_out = round_inward(span, Granule.THP, file_start)
    assert whole == HvaRange.of(Hva(file_start + HUGE_BYTES), 2 * HUGE_BYTES)
    assert sum(piece.size_bytes for piece in left_out) == HUGE_BYTES
