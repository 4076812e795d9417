# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger: which pages are in the balloon now."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.host.errnos import check_uffd
from uffdballoon.model.addresses import PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.blockmap import Tally
from uffdballoon.model.fragments import Fragments
from uffdballoon.model.job import Turn, run_job
from uffdballoon.model.ram import Backing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from uffdballoon.model.job import Job
    from uffdballoon.model.ram import RamBlock

_MEASURED_BYTES = 1 << 30
"""At a time: 2 ms where every second page is ballooned."""
_LISTED_RUNS = 2048
"""At a time: 2 ms in Python."""
_RANGE_BYTES = 16  # struct uffdb_range
NOTE_OFFSET = int(lib.UFFDB_NOTE_OFFSET)
NOTE_BYTES = int(lib.UFFDB_NOTE_BYTES)
"""Where the memfd of a ledger has room for a note of ours; zeros at first."""


def _flags(block: RamBlock) -> int:
    shared = lib.UFFDB_BLOCK_SHARED if block.backing is not Backing.ANON else 0
    hugetlb = lib.UFFDB_BLOCK_HUGETLB if block.backing is Backing.HUGETLBFS else 0
    private = lib.UFFDB_BLOCK_PRIVATE if shared and not block.shared else 0
    return int(shared | hugetlb | private)


def _node(block: RamBlock) -> int:
    return int(lib.UFFDB_MAX_NODES) if block.numa_node is None else block.numa_node


class Ledger:
    """One bit a 4 KiB page of the RAM blocks; safe beside a running engine.

    In the memfd ``memory`` where one is given: a new one is empty, another is gone on with.
    """

    def __init__(self, blocks: Sequence[RamBlock], memory: int = -1) -> None:
        self.blocks = tuple(blocks)
        rows = ffi.new(
            "struct uffdb_block[]", [(b.hva, b.size_bytes, _flags(b), _node(b)) for b in blocks]
        )
        out = ffi.new("struct uffdb_ledger **")
        if memory < 0:
            made = lib.uffdb_ledger_create(rows, len(blocks), out)
        else:
            made = lib.uffdb_ledger_create_in(memory, rows, len(blocks), out)
        check_uffd(made, "cannot make a ledger")
        self.handle = ffi.gc(out[0], lib.uffdb_ledger_destroy)

    def set(self, span: HvaRange) -> int:
        """Call pages ballooned; return how many were not."""
        return check_uffd(
            lib.uffdb_ledger_set(self.handle, span.start, span.size_bytes),
            f"{span} is not guest RAM",
        )

    def clear(self, span: HvaRange) -> int:
        """Call pages owned; return how many were ballooned."""
        return check_uffd(
            lib.uffdb_ledger_clear(self.handle, span.start, span.size_bytes),
            f"{span} is not guest RAM",
        )

    def test(self, hva: int) -> bool:
        return bool(
            check_uffd(lib.uffdb_ledger_test(self.handle, hva), f"hva {hva:#x} is not guest RAM")
        )

    @property
    def ballooned_bytes(self) -> int:
        return int(lib.uffdb_ledger_pages(self.handle)) * PAGE_BYTES

    def node_bytes(self, node: int) -> int:
        """Return what is ballooned of a NUMA node of the guest."""
        return int(lib.uffdb_ledger_node_pages(self.handle, node)) * PAGE_BYTES

    def node_at(self, hva: int) -> int:
        """Return the node of the RAM block at ``hva``, as the fault loop knows it."""
        return next(_node(b) for b in self.blocks if b.hva <= hva < b.hva_range.end)

    def count_bytes(self, span: HvaRange) -> int:
        """Return what is ballooned of a range of one RAM block."""
        return int(lib.uffdb_ledger_count(self.handle, span.start, span.size_bytes)) * PAGE_BYTES

    def fine_blocks(self, span: HvaRange, order: int, unchanged_since: Ledger | None = None) -> int:
        """Count blocks of 2 MiB of which an aligned piece of ``order`` is ballooned in part.

        With ``unchanged_since``, those only that are the same there.
        """
        before = unchanged_since.handle if unchanged_since is not None else ffi.NULL
        of = ffi.new("struct uffdb_range *", (span.start, span.size_bytes))
        return int(lib.uffdb_ledger_fine(self.handle, before, of, order))

    def tally(self, block: RamBlock) -> Tally:
        """Tell the host's blocks of 2 MiB of a RAM block by what is ballooned; walks nothing."""
        out = ffi.new("struct uffdb_tally *")
        told = lib.uffdb_ledger_tally(self.handle, block.hva, out)
        check_uffd(told, f"hva {block.hva:#x} is not guest RAM")
        return Tally(*(int(getattr(out, name)) for name in Tally._fields))

    def copy_to(self, other: Ledger) -> None:
        """Make a ledger over the same RAM blocks the same as this one."""
        lib.uffdb_ledger_copy(self.handle, other.handle)

    def fragments(
        self, parts: Iterable[tuple[HvaRange, int]], without: Ledger | None = None
    ) -> Fragments:
        """Measure runs, for those who have no loop; see measuring_fragments()."""
        return run_job(self.measuring_fragments(parts, without))

    def measuring_fragments(
        self, parts: Iterable[tuple[HvaRange, int]], without: Ledger | None = None
    ) -> Job[Fragments]:
        """Measure the runs of ``parts``, (a range of one RAM block, its first gfn), in C.

        Pages that are in ``without``, too, are left out. A gibibyte in a step, so that what moves
        meanwhile is counted as it was or as it is.
        """
        out = ffi.new("struct uffdb_fragments *")
        other = without.handle if without is not None else ffi.NULL
        turn = Turn()
        for step, gfn in self._steps(parts):
            within = ffi.new("struct uffdb_range *", (step.start, step.size_bytes))
            lib.uffdb_ledger_fragments(self.handle, other, within, gfn, out)
            if turn.is_over():
                yield 0.0
        return Fragments(
            pages=int(out.pages),
            count=int(out.runs),
            runs={i: int(count) for i, count in enumerate(out.lengths) if count},
            orders={i: int(count) for i, count in enumerate(out.orders) if count},
            span_pages=int(out.end_page - out.first_page),
        )

    def listing_runs(
        self, parts: Iterable[tuple[HvaRange, int]], without: Ledger, most: int
    ) -> Job[array[int]]:
        """List runs that are not in ``without``, the first ``most`` of them.

        Of each its first gfn, and its pages, one after the other. ``parts`` as above.
        """
        found = array("Q")
        turn = Turn()
        for step, gfn in self._steps(parts):
            at = step.start
            while at < step.end and len(found) < 2 * most:
                words, at = self._list(HvaRange(at, step.end), without)
                for start, size_bytes in zip(words[::2], words[1::2], strict=True):
                    found.append(gfn + (start - step.start) // PAGE_BYTES)
                    found.append(size_bytes // PAGE_BYTES)
                if turn.is_over():
                    yield 0.0
        return found[: 2 * most]

    def _list(self, span: HvaRange, without: Ledger) -> tuple[array[int], Hva]:
        """Return start and bytes of the first runs of a span, and where to go on."""
        within = ffi.new("struct uffdb_range *", (span.start, span.size_bytes))
        out = ffi.new("struct uffdb_range[]", _LISTED_RUNS)
        count = lib.uffdb_ledger_list(self.handle, without.handle, within, out, _LISTED_RUNS)
        words = array("Q", bytes(ffi.buffer(out, count * _RANGE_BYTES)))
        return words, Hva(words[-2] + words[-1]) if count == _LISTED_RUNS else span.end

    def _steps(self, parts: Iterable[tuple[HvaRange, int]]) -> Iterator[tuple[HvaRange, int]]:
        """Cut parts into what is looked at in one step, each with its first gfn."""
        for span, gfn in parts:
            at = span.start
            while at < span.end:
                end = self._run_end(HvaRange(at, span.end))
                yield HvaRange(at, end), gfn + (at - span.start) // PAGE_BYTES
                at = end

    def _run_end(self, span: HvaRange) -> Hva:
        """Return where to end a step in a range: some way in it, and within no run."""
        if span.size_bytes <= _MEASURED_BYTES:
            return span.end
        rest = HvaRange(Hva(span.start + _MEASURED_BYTES), span.end)
        run = next(self.runs(rest), None)
        return run.end if run is not None and run.start == rest.start else rest.start

    def runs(self, span: HvaRange) -> Iterator[HvaRange]:
        """Yield the ballooned stretches of a range that lies in one RAM block."""
        out = ffi.new("struct uffdb_range *")
        at = int(span.start)
        while at < span.end and lib.uffdb_ledger_next(self.handle, at, span.end, out) > 0:
            yield HvaRange.of(out.start, out.len)
            at = out.start + out.len
