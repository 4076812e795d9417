# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a NUMA node of the guest is taken and given back, and what is told of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.guest_ram import huge_page_of, layout_of, pages_of, ram_block
from uffdballoon.balloon.fragmentation import NodeLimit
from uffdballoon.balloon.nodes import GuestNodes, refuse_unknown_nodes
from uffdballoon.core.ledger import Ledger
from uffdballoon.core.reclaim import ReclaimMeasure
from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.fragmentation import FragmentationLimit
from uffdballoon.model.granule import Granule
from uffdballoon.model.ram import Backing
from uffdballoon.model.terms import ContractKind, Terms

if TYPE_CHECKING:
    from uffdballoon.model.ram import RamBlock

NO_PROCESS = 0
BLOCKS = (ram_block(0, huge_pages=8), ram_block(1, huge_pages=4, node=1))
SECOND = 8 * HUGE_BYTES
"""The gpa of node 1."""


def nodes_of(
    ledger: Ledger | None = None, terms: Terms | None = None, *blocks: RamBlock
) -> GuestNodes:
    blocks = blocks or BLOCKS
    return GuestNodes(NO_PROCESS, layout_of(*blocks), ledger or Ledger(blocks), terms or Terms())


def taken(nodes: GuestNodes, node: int, size: int | None, granule: Granule = Granule.THP) -> object:
    return [(s.start, s.size_bytes) for s in nodes.owned([(node, size)], granule)]


def test_memory_is_taken_from_the_end_of_the_node() -> None:
    nodes = nodes_of()
    assert taken(nodes, 0, HUGE_BYTES) == [(7 * HUGE_BYTES, HUGE_BYTES)]
    assert taken(nodes, 1, 2 * HUGE_BYTES) == [(SECOND + 2 * HUGE_BYTES, 2 * HUGE_BYTES)]
    assert taken(nodes, 1, None) == [(SECOND, 4 * HUGE_BYTES)]


def test_what_is_in_the_balloon_already_is_passed_over() -> None:
    ledger = Ledger(BLOCKS)
    ledger.set(huge_page_of(BLOCKS[0], 6))
    assert taken(nodes_of(ledger), 0, 3 * HUGE_BYTES) == [
        (7 * HUGE_BYTES, HUGE_BYTES),
        (4 * HUGE_BYTES, 2 * HUGE_BYTES),
    ]


def test_only_whole_granules_are_taken() -> None:
    ledger = Ledger(BLOCKS)
    ledger.set(pages_of(BLOCKS[1], 3 * 512 + 5))
    nodes = nodes_of(ledger)
    assert taken(nodes, 1, HUGE_BYTES) == [(SECOND + 2 * HUGE_BYTES, HUGE_BYTES)]
    assert taken(nodes, 1, PAGE_BYTES, Granule.SMALL) == [
        (SECOND + 4 * HUGE_BYTES - PAGE_BYTES, PAGE_BYTES)
    ]


def test_of_several_nodes_each_gives_its_part_or_none_does() -> None:
    nodes = nodes_of()
    chosen = nodes.owned([(1, HUGE_BYTES), (0, 2 * HUGE_BYTES)], Granule.THP)
    assert [(span.start, span.size_bytes) for span in chosen] == [
        (SECOND + 3 * HUGE_BYTES, HUGE_BYTES),
        (6 * HUGE_BYTES, 2 * HUGE_BYTES),
    ]
    with pytest.raises(RangeError, match="node 1 has not"):
        nodes.owned([(0, HUGE_BYTES), (1, 5 * HUGE_BYTES)], Granule.THP)


def test_what_was_taken_last_is_given_back_first() -> None:
    ledger = Ledger(BLOCKS)
    ledger.set(huge_page_of(BLOCKS[0], 2))
    ledger.set(huge_page_of(BLOCKS[0], 5, 3))
    given_back = nodes_of(ledger).given_up([(0, 2 * HUGE_BYTES)], Granule.THP)
    assert given_back == [
        GpaRange.of(2 * HUGE_BYTES, HUGE_BYTES),
        GpaRange.of(5 * HUGE_BYTES, HUGE_BYTES),
    ]


@given(
    there=st.sets(st.integers(0, 7)),
    wanted=st.integers(1, 8),
)
def test_what_is_chosen_is_of_its_size_and_kind(there: set[int], wanted: int) -> None:
    ledger = Ledger(BLOCKS)
    for number in there:
        ledger.set(huge_page_of(BLOCKS[0], number))
    nodes = nodes_of(ledger)
    if wanted > 8 - len(there):
        with pytest.raises(RangeError):
            nodes.owned([(0, wanted * HUGE_BYTES)], Granule.THP)
        return
    chosen = nodes.owned([(0, wanted * HUGE_BYTES)], Granule.THP)
    numbers = [at // HUGE_BYTES for s in chosen for at in range(s.start, s.end, HUGE_BYTES)]
    assert len(numbers) == len(set(numbers)) == wanted
    assert set(numbers) == set(sorted(set(range(8)) - there)[-wanted:])


@pytest.mark.parametrize("size_bytes", [0, 1, PAGE_BYTES, HUGE_BYTES + 1, 5 * HUGE_BYTES])
def test_a_size_that_the_node_has_not_in_granules_is_refused(size_bytes: int) -> None:
    with pytest.raises(RangeError, match="node 1 has not") as refused:
        nodes_of().owned([(1, size_bytes)], Granule.THP)
    assert refused.value.why == "8 MiB of it, in granules of 2048 KiB, are that the guest owns"


def test_an_empty_balloon_has_nothing_to_give_back() -> None:
    with pytest.raises(RangeError, match="node 0 has not"):
        nodes_of().given_up([(0, None)], Granule.SMALL)


def test_a_node_that_the_guest_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(RangeError, match="no memory on node 2") as refused:
        nodes_of().owned([(2, None)], Granule.THP)
    assert refused.value.why == "its memory is on 0, 1"
    unknown = ram_block(node=None)
    with pytest.raises(RangeError) as refused:
        nodes_of(None, None, unknown).owned([(0, None)], Granule.THP)
    assert refused.value.why == "its memory is on no known node"


def test_a_range_of_another_node_is_refused() -> None:
    nodes = nodes_of()
    nodes.refuse_outside(1, GpaRange.of(SECOND, HUGE_BYTES))
    with pytest.raises(RangeError, match="not memory of node 1") as refused:
        nodes.refuse_outside(1, GpaRange.of(0, HUGE_BYTES))
    assert refused.value.why == "it belongs to node 0"


def test_what_is_agreed_for_a_node_must_fit_it() -> None:
    layout = layout_of(*BLOCKS)
    fits = Terms(kind=ContractKind.CAP, node_floors=((1, 4 * HUGE_BYTES),))
    refuse_unknown_nodes(layout, fits, FragmentationLimit(node_max_broken=((0, 1),)))
    with pytest.raises(UsageError, match="cannot stay in the balloon of node 1"):
        refuse_unknown_nodes(layout, Terms(node_floors=((1, 4 * HUGE_BYTES + 1),)), None)
    with pytest.raises(RangeError, match="node 3"):
        refuse_unknown_nodes(layout, Terms(node_floors=((3, 0),)), None)
    with pytest.raises(RangeError, match="node 4"):
        refuse_unknown_nodes(layout, Terms(), FragmentationLimit(node_max_broken=((4, 0),)))


def test_each_node_is_told_with_what_is_agreed_for_it() -> None:
    unknown = ram_block(2, huge_pages=2, node=None)
    huge = ram_block(3, huge_pages=2, node=1, backing=Backing.HUGETLBFS)
    blocks = (*BLOCKS, huge, unknown)
    ledger = Ledger(blocks)
    ledger.set(huge_page_of(BLOCKS[1], 0, 2))
    ledger.set(pages_of(BLOCKS[0], 0))
    ledger.set(pages_of(unknown, 0, 3))
    terms = Terms(kind=ContractKind.CAP, node_floors=((0, PAGE_BYTES), (1, 8 * HUGE_BYTES)))
    nodes = nodes_of(ledger, terms, *blocks)
    measured = dict.fromkeys(blocks, ReclaimMeasure())
    measured[BLOCKS[1]] = ReclaimMeasure(ballooned_pages=1024, pinned_pages=24)
    tallies = {block: ledger.tally(block) for block in blocks}
    limits = {1: NodeLimit(7, 3)}
    first, second, rest = nodes.report(
        measured, tallies, lambda node: limits.get(node or 0, NodeLimit(None, None))
    )
    assert (first.node, first.ballooned_bytes, first.below_floor) == (0, PAGE_BYTES, False)
    assert (first.ram_bytes, first.broken_blocks, first.limit_blocks) == (SECOND, 1, None)
    assert (second.node, second.floor_bytes, second.below_floor) == (1, 8 * HUGE_BYTES, True)
    assert (second.ram_bytes, second.reclaimed_bytes) == (6 * HUGE_BYTES, 1000 * PAGE_BYTES)
    assert (second.limit_blocks, second.counted_blocks, second.broken_blocks) == (7, 3, 0)
    assert (rest.node, rest.ballooned_bytes, rest.floor_bytes) == (None, 3 * PAGE_BYTES, 0)
    assert all(told.host_nodes == {} for told in (first, second, rest)), "nobody tells"


def test_each_ram_block_is_told_with_its_tally() -> None:
    ledger = Ledger(BLOCKS)
    ledger.set(huge_page_of(BLOCKS[0], 0, 2))
    ledger.set(pages_of(BLOCKS[0], 1024))
    tallies = {block: ledger.tally(block) for block in BLOCKS}
    first, second = nodes_of(ledger).blocks_report(tallies)
    assert (first.idstr, first.broken, first.whole, first.untouched) == ("ram0", 1, 2, 5)
    assert (second.numa_node, second.size, second.untouched) == (1, 4 * HUGE_BYTES, 4)


def test_a_floor_above_all_of_the_guests_memory_is_refused() -> None:
    layout = layout_of(*BLOCKS)
    cap = ContractKind.CAP
    refuse_unknown_nodes(layout, Terms(kind=cap, floor_bytes=layout.ram_bytes), None)
    with pytest.raises(UsageError, match="cannot stay in the balloon"):
        refuse_unknown_nodes(layout, Terms(kind=cap, floor_bytes=layout.ram_bytes + 1), None)
