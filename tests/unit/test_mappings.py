# SPDX-License-Identifier: GPL-2.0-or-later
"""How many windows there may be, by the mappings that the target has."""

from __future__ import annotations

from uffdballoon.balloon.mappings import cut_huge_mappings, most_huge_mappings, window_budget
from uffdballoon.host.procfs import Mapping
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.ram import Backing, RamBlock

_LIMIT = 65530
_BASE = 1 << 40


def _block(backing: Backing, pages: int) -> RamBlock:
    return RamBlock("ram", Hva(_BASE), pages * HUGE_BYTES, HUGE_BYTES, backing, shared=True)


def _pieces(count: int) -> list[Mapping]:
    return [
        Mapping(HvaRange.of(_BASE + i * HUGE_BYTES, HUGE_BYTES), "rw-s", 0, "00:10", 7, "/x")
        for i in range(count)
    ]


_OTHERS = [Mapping(HvaRange.of(PAGE_BYTES * i, PAGE_BYTES), "r--p", 0, "", 0, "") for i in (2, 4)]


def test_half_of_what_is_left_is_for_windows_of_two_mappings_each() -> None:
    assert window_budget(_OTHERS, [_block(Backing.MEMFD, 8)], _LIMIT) == (_LIMIT - 2) // 4
    assert window_budget(_OTHERS, [], 0) == 1


def test_what_earlier_attaches_cut_wears_nothing_out() -> None:
    blocks = [_block(Backing.HUGETLBFS, 1000)]
    fresh = window_budget([*_OTHERS, *_pieces(1)], blocks, _LIMIT)
    assert window_budget([*_OTHERS, *_pieces(1000)], blocks, _LIMIT) == fresh
    assert cut_huge_mappings([*_OTHERS, *_pieces(1000)], blocks) == 999


def test_other_memory_has_no_cuts_and_a_target_that_is_gone_neither() -> None:
    assert cut_huge_mappings(_pieces(5), [_block(Backing.MEMFD, 8)]) == 0
    assert cut_huge_mappings([], [_block(Backing.HUGETLBFS, 8)]) == 0


def test_there_is_always_a_limit() -> None:
    assert most_huge_mappings(_LIMIT) == _LIMIT // 4
    assert most_huge_mappings(0) == 1
