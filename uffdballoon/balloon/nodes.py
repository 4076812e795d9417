# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's NUMA nodes: what is in the balloon of each, and what is there to take or give."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from uffdballoon.errors import RangeError, UsageError
from uffdballoon.host.numa import HostNodes
from uffdballoon.model.addresses import GpaRange, HvaRange
from uffdballoon.model.granule import Granule, round_inward
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.memory import NodeStatus, RamBlockStatus
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from uffdballoon.balloon.fragmentation import NodeLimit
    from uffdballoon.core.ledger import Ledger
    from uffdballoon.core.reclaim import ReclaimMeasure
    from uffdballoon.model.blockmap import Tally
    from uffdballoon.model.fragmentation import FragmentationLimit
    from uffdballoon.model.ram import Layout, RamBlock, Segment
    from uffdballoon.model.terms import Terms


NodePart: TypeAlias = "tuple[int, int | None]"
"""A node, and how many bytes of it; None: all that there is."""


def refuse_unknown_nodes(
    layout: Layout, terms: Terms, fragmentation: FragmentationLimit | None
) -> None:
    """Raise UsageError when something was agreed for a node that the guest has not.

    Or when more is to stay in the balloon than there is memory, in all or on a node.
    """
    if terms.floor_bytes > layout.ram_bytes:
        raise UsageError(
            f"{format_size(terms.floor_bytes)} cannot stay in the balloon",
            why=f"the guest has {format_size(layout.ram_bytes)} that could be in it",
            hint="give a --floor that is not larger",
        )
    limits = fragmentation.node_max_broken if fragmentation is not None else ()
    for node, _ in (*terms.node_floors, *limits):
        _segments_of(layout, node)
    for node, floor_bytes in terms.node_floors:
        there = _ram_bytes(layout, node)
        if floor_bytes > there:
            raise UsageError(
                f"{format_size(floor_bytes)} cannot stay in the balloon of node {node}",
                why=f"it has {format_size(there)} of memory",
                hint="give a floor that is not larger",
            )


class GuestNodes:
    """The RAM blocks of a guest by its own NUMA nodes; one that is not known is node None."""

    def __init__(self, pid: int, layout: Layout, ledger: Ledger, terms: Terms) -> None:
        self._layout = layout
        self._ledger = ledger
        self._terms = terms
        self._host = HostNodes(pid, (block.hva_range for block in layout.blocks))
        self.numbers = _numbers(layout)

    def agree(self, terms: Terms) -> None:
        """Report the floors of other terms from now on."""
        self._terms = terms

    def ballooned(self) -> dict[int, int]:
        """Return what is in the balloon of each node whose number is known, in bytes."""
        return {node: self.ballooned_bytes(node) for node in self.numbers}

    def ballooned_bytes(self, node: int | None) -> int:
        """Return what is in the balloon of a node."""
        return sum(self._ledger.count_bytes(block.hva_range) for block in self._blocks_of(node))

    def report(
        self,
        measured: Mapping[RamBlock, ReclaimMeasure],
        tallies: Mapping[RamBlock, Tally],
        limit_of: Callable[[int | None], NodeLimit],
    ) -> tuple[NodeStatus, ...]:
        """Return each node's counts and what ``limit_of`` it there is, for ``status``."""
        where = self._host.read()
        rest = [None] if any(b.numa_node is None for b in self._layout.blocks) else []
        return tuple(
            self._report_of(node, measured, tallies, where, limit_of(node))
            for node in [*self.numbers, *rest]
        )

    def blocks_report(self, tallies: Mapping[RamBlock, Tally]) -> tuple[RamBlockStatus, ...]:
        """Return for each RAM block how many of its huge pages are broken, for ``status``."""
        return tuple(
            RamBlockStatus(
                idstr=block.idstr,
                size=block.size_bytes,
                numa_node=block.numa_node,
                **tallies[block]._asdict(),
            )
            for block in self._layout.blocks
        )

    def owned(self, parts: Sequence[NodePart], granule: Granule) -> list[GpaRange]:
        """Choose whole granules to take, from the end of each node on.

        The guest's kernel lies at the beginning of its memory. Raises RangeError when there are
        fewer.
        """
        return [
            span
            for node, size_bytes in parts
            for span in self._choose(node, granule, size_bytes, ballooned=False)
        ]

    def given_up(self, parts: Sequence[NodePart], granule: Granule) -> list[GpaRange]:
        """Choose whole granules to give back, what owned() takes last first; raise RangeError."""
        return [
            span
            for node, size_bytes in parts
            for span in self._choose(node, granule, size_bytes, ballooned=True)
        ]

    def refuse_outside(self, node: int, span: GpaRange) -> None:
        """Raise RangeError when a range is not memory of this node."""
        _segments_of(self._layout, node)
        block = self._layout.segment_at(span.start).block
        if block.numa_node != node:
            raise RangeError(
                f"{span} is not memory of node {node}",
                why=f"it belongs to node {block.numa_node}",
                hint="leave --gpa or --node out",
            )

    def _choose(
        self, node: int, granule: Granule, size_bytes: int | None, *, ballooned: bool
    ) -> list[GpaRange]:
        runs = list(self._whole_runs(node, granule, ballooned=ballooned))
        there = sum(run.size_bytes for run in runs)
        wanted = there if size_bytes is None else size_bytes
        if not 0 < wanted <= there or wanted % granule.size_bytes:
            what = "in its balloon" if ballooned else "that the guest owns"
            raise RangeError(
                f"node {node} has not {format_size(wanted)} in whole {granule.value} granules",
                why=f"{format_size(there)} of it, in granules of {granule.size_bytes >> 10} KiB, "
                f"are {what}",
                hint="give a --size of whole granules that is not larger, or none at all",
            )
        chosen = []
        for run in runs if ballooned else reversed(runs):
            size = min(run.size_bytes, wanted)
            if not size:
                break
            start = run.start if ballooned else run.end - size
            chosen.append(GpaRange.of(start, size))
            wanted -= size
        return chosen

    def _whole_runs(self, node: int, granule: Granule, *, ballooned: bool) -> Iterator[GpaRange]:
        """Yield runs of whole granules in the order of their gpa."""
        for segment in _segments_of(self._layout, node):
            runs = self._ledger.runs(segment.hva_range)
            if not ballooned:
                runs = _between(segment.hva_range, runs)
            for run in runs:
                whole, _ = round_inward(run, granule, segment.block.file_start)
                if whole is not None:
                    yield GpaRange.of(segment.gpa + whole.start - segment.hva, whole.size_bytes)

    def _blocks_of(self, node: int | None) -> list[RamBlock]:
        return [block for block in self._layout.blocks if block.numa_node == node]

    def _report_of(
        self,
        node: int | None,
        measured: Mapping[RamBlock, ReclaimMeasure],
        tallies: Mapping[RamBlock, Tally],
        where: Mapping[HvaRange, Mapping[int, int]],
        limit: NodeLimit,
    ) -> NodeStatus:
        blocks = self._blocks_of(node)
        host: Counter[int] = Counter()
        for block in blocks:
            host.update(where.get(block.hva_range, {}))
        ballooned_bytes = self.ballooned_bytes(node)
        floor_bytes = self._terms.floor_of(node)
        return NodeStatus(
            node=node,
            ram_bytes=_ram_bytes(self._layout, node),
            ballooned_bytes=ballooned_bytes,
            floor_bytes=floor_bytes,
            below_floor=ballooned_bytes < floor_bytes,
            reclaimed_bytes=sum(measured[block].free_bytes for block in blocks),
            broken_blocks=sum(
                tallies[block].broken for block in blocks if block.backing is not Backing.HUGETLBFS
            ),
            whole_blocks=sum(tallies[block].whole for block in blocks),
            untouched_blocks=sum(tallies[block].untouched for block in blocks),
            host_nodes=dict(sorted(host.items())),
            limit_blocks=limit.limit_blocks,
            counted_blocks=limit.counted_blocks,
        )


def _numbers(layout: Layout) -> list[int]:
    return sorted({b.numa_node for b in layout.blocks if b.numa_node is not None})


def _segments_of(layout: Layout, node: int) -> list[Segment]:
    found = [s for s in layout.segments if s.block.numa_node == node]
    if not found:
        raise RangeError(
            f"the guest has no memory on node {node}",
            why=f"its memory is on {', '.join(map(str, _numbers(layout))) or 'no known node'}",
            hint="`uffdballoon inspect PID` lists its RAM blocks",
        )
    return found


def _ram_bytes(layout: Layout, node: int | None) -> int:
    return sum(s.size_bytes for s in layout.segments if s.block.numa_node == node)


def _between(span: HvaRange, runs: Iterator[HvaRange]) -> Iterator[HvaRange]:
    """Yield what lies between sorted runs."""
    at = span.start
    for run in runs:
        if at < run.start:
            yield HvaRange(at, run.start)
        at = run.end
    if at < span.end:
        yield HvaRange(at, span.end)
