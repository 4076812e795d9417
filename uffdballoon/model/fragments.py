# SPDX-License-Identifier: GPL-2.0-or-later
"""How fragmented a balloon is, and what it would cost to tell of it in other encodings.

The question of Andrea Arcangeli's thread on balloon granularity: virtio-balloon
sends an array of 32-bit page frame numbers (virtio 1.2, 5.5.6), one for each
4 KiB page. What would a bitmap, a list of (pfn, length), or of power-of-two
blocks send instead?
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.model.records.statistics import FragmentCounts, InflateCounts, WireBytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PFN_BYTES = 4
"""An entry of virtio-balloon's array."""
RANGE_BYTES = 16
"""A 64-bit pfn and a 64-bit length: beyond 16 TiB, and aligned."""
ORDER_BYTES = 8
"""A 64-bit pfn with the order in its low 12 bits, as pfns shifted by PAGE_SHIFT leave them free."""
MAX_ORDER = 10
"""The largest block of Linux's buddy allocator on x86-64: MAX_PAGE_ORDER, 4 MiB."""
MESSAGE_PAGES = 256
"""Page numbers in one message of Linux's driver: VIRTIO_BALLOON_ARRAY_PFNS_MAX."""


@dataclass(frozen=True, slots=True)
class Fragments:
    """Runs of pages: how many there are of each length, and of each power of two.

    ``runs`` counts maximal runs by floor(log2(pages)); ``orders`` counts the
    naturally aligned power-of-two blocks, of at most 4 MiB, that they are made of;
    ``span_pages`` reaches from the first to the last page.
    """

    pages: int
    count: int
    runs: dict[int, int]
    orders: dict[int, int]
    span_pages: int

    @property
    def wire_bytes(self) -> WireBytes:
        """What each encoding would send."""
        return WireBytes(
            pfn_array=self.pages * PFN_BYTES,
            bitmap=(self.span_pages + 7) // 8,
            range_list=self.count * RANGE_BYTES,
            order_list=sum(self.orders.values()) * ORDER_BYTES,
        )

    def counts(self) -> FragmentCounts:
        """Return them in the shape of ``stats --json``."""
        return FragmentCounts(
            pages=self.pages,
            runs=self.count,
            run_lengths={1 << k: v for k, v in sorted(self.runs.items())},
            orders=dict(sorted(self.orders.items())),
            span_pages=self.span_pages,
            wire_bytes=self.wire_bytes,
            messages=-(-self.pages // MESSAGE_PAGES),
        )

    def counts_at(self, time_ns: int) -> InflateCounts:
        """Return them as those of an inflate that was over at ``time_ns``, since 1970."""
        counts = self.counts()
        return InflateCounts(
            pages=counts.pages,
            runs=counts.runs,
            run_lengths=counts.run_lengths,
            orders=counts.orders,
            span_pages=counts.span_pages,
            wire_bytes=counts.wire_bytes,
            messages=counts.messages,
            time_ns=time_ns,
        )


def fragments_of(runs: Iterable[tuple[int, int]]) -> Fragments:
    """Measure runs of (first page, pages), sorted and apart from each other."""
    lengths: Counter[int] = Counter()
    orders: Counter[int] = Counter()
    pages = count = 0
    first = last = None
    for start, length in runs:
        if first is None:
            first = start
        last = start + length
        pages += length
        count += 1
        lengths[length.bit_length() - 1] += 1
        for order, more in _blocks(start, length):
            orders[order] += more
    span = 0 if first is None or last is None else last - first
    return Fragments(pages, count, dict(lengths), dict(orders), span)


def _blocks(start: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a run into naturally aligned power-of-two blocks, the fewest; yield (order, how many).

    Those of the largest order come all at once, however long the run is.
    """
    end = start + length
    while start < end:
        aligned = (start & -start).bit_length() - 1 if start else MAX_ORDER
        order = min(aligned, (end - start).bit_length() - 1, MAX_ORDER)
        count = (end - start) >> MAX_ORDER if order == MAX_ORDER else 1
        yield order, count
        start += count << order
