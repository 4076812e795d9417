# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs, orders and encodings of a balloon, and of larger ones laid out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.fragments import fragments_of
from uffdballoon.model.recording import FORMAT, Recording
from uffdballoon.model.records.encoding import parse, to_json
from uffdballoon.model.records.statistics import WireBytes

TILE = 2048


def runs_of(pages: set[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for page in sorted(pages):
        if runs and sum(runs[-1]) == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


page_sets = st.sets(st.integers(0, TILE - 1), max_size=200) | st.builds(
    lambda start, count: set(range(start, min(TILE, start + count))),
    st.integers(0, TILE - 1),
    st.integers(1, TILE),
)


def test_a_run_is_cut_into_the_fewest_aligned_blocks() -> None:
    found = fragments_of([(3, 6), (512, 512)])
    assert found.pages == 518
    assert found.orders == {0: 2, 2: 1, 9: 1}
    assert found.runs == {2: 1, 9: 1}
    assert found.wire_bytes == WireBytes(
        pfn_array=518 * 4, bitmap=(1024 - 3 + 7) // 8, range_list=32, order_list=32
    )
    assert found.counts().messages == 3


@given(page_sets)
def test_orders_make_up_all_pages(pages: set[int]) -> None:
    found = fragments_of(runs_of(pages))
    assert sum(count << order for order, count in found.orders.items()) == len(pages)
    assert sum(found.runs.values()) == found.count
    assert found.span_pages == (max(pages) - min(pages) + 1 if pages else 0)


@given(page_sets, st.integers(1, 7))
def test_a_larger_guest_is_the_recorded_one_over_and_over(pages: set[int], copies: int) -> None:
    recording = Recording(TILE * PAGE_BYTES, tuple(runs_of(pages)))
    laid_out = {copy * TILE + page for copy in range(copies) for page in pages}
    assert recording.tiled(copies * TILE * PAGE_BYTES) == fragments_of(runs_of(laid_out))


@given(page_sets)
def test_a_recording_is_read_as_it_was_written(pages: set[int]) -> None:
    recording = Recording(TILE * PAGE_BYTES, tuple(runs_of(pages)))
    assert Recording.parse(parse(to_json(recording.record()))) == recording


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"format": "other"},
        {"format": FORMAT, "ram_bytes": "1G", "runs": []},
        {"format": FORMAT, "ram_bytes": 1 << 30, "runs": [[0]]},
        {"format": FORMAT, "ram_bytes": 1 << 30, "runs": [[0, 0]]},
        {"format": FORMAT, "ram_bytes": 1 << 30, "runs": [[4, 2], [5, 1]]},
        {"format": FORMAT, "ram_bytes": 1 << 30, "runs": [[True, 2]]},
    ],
)
def test_what_is_no_recording_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no recording"):
        Recording.parse(value)
