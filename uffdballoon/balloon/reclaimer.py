# SPDX-License-Identifier: GPL-2.0-or-later
"""Give back, at a rate, what zapped pages keep.

Split a little at a time, after what was given up is armed: the lock of the target's
mappings that a split holds is the one that arming waits for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uffdballoon.host.thp import read_thp_settings
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES
from uffdballoon.model.reclaiming import Reclaiming
from uffdballoon.model.records.memory import Khugepaged, Reclaim

if TYPE_CHECKING:
    from uffdballoon.core.reclaim import ReclaimMeasure, ReclaimPasses
    from uffdballoon.model.records.status import ReclaimedSource

SETTLE_NS = 200_000_000
"""How long a block is left alone after a page of it was given up: mostly the rest follows."""
_BURST_S = 0.1
_SLICE_BLOCKS = 32
"""At most so many at a time; some 8 ms where it was measured."""
_WHILE_PENDING_S = 0.01
_S_PER_NS = 1e-9
_US_PER_NS = 1e-3


class Reclaimer:
    """``rate_bytes_per_s`` is of memory whose huge pages are split."""

    def __init__(self, passes: ReclaimPasses, *, mode: Reclaiming, rate_bytes_per_s: int) -> None:
        self._passes = passes
        self._mode = mode
        self._blocks_per_s = max(1.0, rate_bytes_per_s / HUGE_BYTES)
        self._allowed = self._burst = max(1.0, self._blocks_per_s * _BURST_S)
        self._counted_s = time.monotonic()

    def close(self) -> None:
        self._passes.close()

    @property
    def is_pending(self) -> bool:
        """Tell whether anything is left for work() to do."""
        return self._mode is Reclaiming.NOW and self._passes.stats().pending_blocks > 0

    def work(self, *, settle_ns: int = SETTLE_NS) -> float | None:
        """Split what may be split now; return seconds until it is to be called again.

        None: nothing is left to do. Raises TargetGoneError.
        """
        if self._mode is Reclaiming.KERNEL:
            return None
        now = time.monotonic()
        self._allowed = min(
            self._burst, self._allowed + (now - self._counted_s) * self._blocks_per_s
        )
        self._counted_s = now
        may = min(int(self._allowed), _SLICE_BLOCKS)
        split = self._passes.split(may, settle_ns) if may else 0
        self._allowed -= split
        if not self.is_pending:
            return None
        if split < may:  # what is left got pages of late
            return max(_WHILE_PENDING_S, settle_ns * _S_PER_NS)
        return max(_WHILE_PENDING_S, (1 - self._allowed) / self._blocks_per_s)

    @property
    def source(self) -> ReclaimedSource:
        """What is free is measured by it."""
        return "kpageflags" if self._passes.sees_huge_pages else "pagemap"

    def report(self, found: ReclaimMeasure) -> Reclaim:
        """Return what is kept and what was done about it, for ``status``."""
        stats = self._passes.stats()
        return Reclaim(
            mode=self._mode,
            rate_bytes_per_s=round(self._blocks_per_s * HUGE_BYTES),
            resident_bytes=found.resident_pages * PAGE_BYTES,
            pinned_bytes=found.pinned_pages * PAGE_BYTES,
            pinned_blocks=found.pinned_blocks,
            pending_blocks=stats.pending_blocks,
            split_blocks=stats.split_blocks,
            failed_blocks=stats.failed_blocks,
            aged_pages=stats.advised_pages,
            freed_bytes=stats.freed_pages * PAGE_BYTES,
            spent_us=round(stats.calls_ns * _US_PER_NS),
        )

    def report_khugepaged(self, found: ReclaimMeasure) -> Khugepaged:
        """Return what khugepaged is kept from, for ``status``."""
        thp = read_thp_settings()
        return Khugepaged(
            enabled=thp.enabled if thp else "never",
            max_ptes_none=thp.max_ptes_none if thp else 0,
            eligible_blocks=found.eligible_blocks,
            unguarded_blocks=found.unguarded_blocks,
        )
