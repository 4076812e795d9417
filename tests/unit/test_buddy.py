# SPDX-License-Identifier: GPL-2.0-or-later
"""The simulated buddy allocator, held against one that takes and splits page by page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.bench.buddy import Buddy
from uffdballoon.errors import UffdballoonError
from uffdballoon.model.fragments import MAX_ORDER, fragments_of

BLOCKS = 3
PAGES = BLOCKS << MAX_ORDER


class OneByOne:
    """Sets of free blocks; what is allocated is one page, of the smallest and lowest block."""

    def __init__(self) -> None:
        self.free: list[set[int]] = [set() for _ in range(MAX_ORDER + 1)]

    def free_page(self, page: int) -> None:
        order = 0
        while order < MAX_ORDER and page ^ 1 in self.free[order]:
            self.free[order].remove(page ^ 1)
            page, order = page >> 1, order + 1
        self.free[order].add(page)

    def take_page(self) -> int | None:
        order = next((order for order, blocks in enumerate(self.free) if blocks), None)
        if order is None:
            return None
        number = min(self.free[order])
        self.free[order].remove(number)
        while order:
            number, order = number << 1, order - 1
            self.free[order].add(number + 1)
        return number

    def shares_of(self, pages: set[int]) -> list[tuple[int, float]]:
        """Return the order of each free block, and what share of it is among ``pages``."""
        return [
            (order, len(pages & set(range(number << order, (number + 1) << order))) / (1 << order))
            for order, blocks in enumerate(self.free)
            for number in blocks
        ]


free_sets = st.sets(st.integers(0, PAGES - 1), max_size=300) | st.builds(
    lambda start, count, step: set(range(start, min(PAGES, start + count), step)),
    st.integers(0, PAGES - 1),
    st.integers(1, PAGES),
    st.sampled_from([1, 1, 2, 5]),
)


def freed(pages: set[int]) -> tuple[Buddy, OneByOne]:
    buddy, model = Buddy(PAGES), OneByOne()
    for page in sorted(pages, key=lambda page: page * 7919 % PAGES):
        buddy.free(page, 1)
        model.free_page(page)
    return buddy, model


def ballooned(buddy: Buddy) -> set[int]:
    return {page for first, pages in buddy.runs() for page in range(first, first + pages)}


@given(free_sets, st.integers(0, PAGES))
def test_pages_are_taken_as_one_by_one(pages: set[int], count: int) -> None:
    buddy, model = freed(pages)
    with buddy:
        assert buddy.blocks == [len(blocks) for blocks in model.free]
        taken = {page for page in (model.take_page() for _ in range(count)) if page is not None}
        assert buddy.take(count, seed=0) == len(taken) == min(count, len(pages))
        assert ballooned(buddy) == taken
        assert buddy.blocks == [len(blocks) for blocks in model.free]


@given(free_sets, st.integers(0, PAGES), st.integers(1, 1 << 63))
def test_whichever_blocks_are_drawn_each_page_is_in_use_or_free_or_ballooned(
    pages: set[int], count: int, seed: int
) -> None:
    buddy, model = freed(pages)
    with buddy:
        taken = buddy.take(count, seed)
        assert taken == min(count, len(pages))
        assert ballooned(buddy) <= pages
        assert len(ballooned(buddy)) == taken
        assert buddy.free_pages == len(pages) - taken
        assert buddy.fragments() == fragments_of(buddy.runs())
        of_blocks = model.shares_of(ballooned(buddy))
        largest = max((order for order, share in of_blocks if share), default=0)
        assert all(share == 1 for order, share in of_blocks if order < largest)
        assert sum(0 < share < 1 for _, share in of_blocks) <= 1


@given(
    st.sets(st.integers(0, MAX_ORDER), min_size=1), st.integers(0, 1000), st.integers(1, 1 << 63)
)
def test_what_is_left_in_use_are_pieces_of_the_orders_that_were_asked_for(
    orders: set[int], permille: int, seed: int
) -> None:
    with Buddy(PAGES) as buddy:
        buddy.scatter(orders, in_use=permille / 1000, seed=seed)
        free = buddy.free_pages
        assert free % (1 << min(orders)) == 0
        assert free == {0: PAGES, 1000: 0}.get(permille, free)
        assert sum(buddy.blocks[: min(orders)]) == 0
        assert buddy.take(PAGES, seed) == free
        assert buddy.free_pages == 0


def test_blocks_are_merged_with_their_buddies_and_not_with_other_neighbours() -> None:
    with Buddy(PAGES) as buddy:
        buddy.free(1, 2)  # 1 and 2 are neighbours, and no buddies
        assert buddy.blocks[:2] == [2, 0]
        buddy.free(0, 1)
        assert buddy.blocks[:2] == [1, 1]
        buddy.free(3, 1)
        assert buddy.blocks[:3] == [0, 0, 1]


def test_the_smallest_blocks_go_first_and_the_last_is_split_from_its_beginning() -> None:
    with Buddy(PAGES) as buddy:
        buddy.free(0, 1 << MAX_ORDER)
        buddy.free(1100, 1)
        buddy.free(1202, 2)
        assert buddy.take(6, seed=0) == 6
        assert list(buddy.runs()) == [(0, 3), (1100, 1), (1202, 2)]
        assert buddy.blocks == [1, 0, *[1] * 8, 0]


@pytest.mark.parametrize("span", [(4, 1), (3, 2), (0, 9), (PAGES, 1), (PAGES - 1, 2), (0, 0)])
def test_pages_that_are_free_or_nobodys_are_not_freed(span: tuple[int, int]) -> None:
    with Buddy(PAGES) as buddy:
        buddy.free(4, 4)
        with pytest.raises(UffdballoonError):
            buddy.free(*span)
        assert buddy.free_pages == 4


def test_a_guest_that_is_no_whole_blocks_is_refused() -> None:
    with pytest.raises(UffdballoonError):
        Buddy(1000)
