# SPDX-License-Identifier: GPL-2.0-or-later
"""What zapped pages keep of the host's memory, seen and given back (native/src/reclaim.c)."""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.host.errnos import check
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.job import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.core.ledger import Ledger
    from uffdballoon.host.thp import ThpSettings
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.job import Job

_MEASURED_BLOCKS = 4
"""At a time: up to half a millisecond each."""


@dataclass(frozen=True, slots=True)
class ReclaimStats:
    """``pending_blocks`` is 0 when nothing is left to do; ``freed_pages`` were ballooned."""

    pending_blocks: int
    looked_blocks: int
    split_blocks: int
    failed_blocks: int
    advised_pages: int
    freed_pages: int
    calls_ns: int


@dataclass(frozen=True, slots=True)
class ReclaimMeasure:
    """What of the balloon is free, in pages of 4 KiB, and 2 MiB blocks by what is in them.

    ``resident_pages`` are there all the same; ``pinned_pages`` are not, but are a part of a
    huge page of which others are. khugepaged would fill ``eligible_blocks``, were they not
    armed; ``unguarded_blocks`` are not.
    """

    ballooned_pages: int = 0
    resident_pages: int = 0
    pinned_pages: int = 0
    pinned_blocks: int = 0
    eligible_blocks: int = 0
    unguarded_blocks: int = 0

    @property
    def free_bytes(self) -> int:
        """What is really free of what is ballooned."""
        held = self.resident_pages + self.pinned_pages
        return (self.ballooned_pages - held) * PAGE_BYTES

    @classmethod
    def total(cls, parts: Iterable[ReclaimMeasure]) -> ReclaimMeasure:
        """Add up what several RAM blocks hold."""
        sums = [sum(column) for column in zip(*map(astuple, parts), strict=True)]
        return cls(*sums)


class ReclaimPasses:
    """Splits partially mapped huge pages that hold ballooned pages, some at a time.

    ``pidfd`` and ``pagemap_fd`` are of the target, and must outlive it.
    """

    def __init__(self, ledger: Ledger, loop: FaultLoop, *, pidfd: int, pagemap_fd: int) -> None:
        self._kpageflags = _open_or_none("/proc/kpageflags")
        config = ffi.new(
            "struct uffdb_reclaim_config *",
            {
                "pidfd": pidfd,
                "pagemap_fd": pagemap_fd,
                "kpageflags_fd": self._kpageflags,
                "engine": loop.handle,
            },
        )
        out = ffi.new("struct uffdb_reclaimer **")
        try:
            check(lib.uffdb_reclaimer_create(config, ledger.handle, out), "cannot make a reclaimer")
        except BaseException:
            self.close()
            raise
        self._reclaimer = ffi.gc(out[0], lib.uffdb_reclaimer_destroy)
        self._kept = (ledger, loop)  # it reads them
        stats = ffi.new("struct uffdb_reclaim_stats *")
        lib.uffdb_reclaimer_stats(self._reclaimer, stats)
        self.sees_huge_pages = bool(stats.sees_folios)

    def close(self) -> None:
        if self._kpageflags >= 0:
            os.close(self._kpageflags)
            self._kpageflags = -1

    def split(self, max_blocks: int, settle_ns: int = 0) -> int:
        """Split huge pages in up to so many 2 MiB blocks; return in how many it was tried.

        Blocks of which pages were given up less than ``settle_ns`` ago may wait. Raises
        TargetGoneError.
        """
        return check(
            lib.uffdb_reclaimer_pass(self._reclaimer, max_blocks, settle_ns),
            "cannot split the target's huge pages",
        )

    def stats(self) -> ReclaimStats:
        stats = ffi.new("struct uffdb_reclaim_stats *")
        lib.uffdb_reclaimer_stats(self._reclaimer, stats)
        return ReclaimStats(
            **{name: int(getattr(stats, name)) for name in ReclaimStats.__dataclass_fields__}
        )

    def measuring(self, thp: ThpSettings | None, span: HvaRange) -> Job[ReclaimMeasure]:
        """Count what is free of a RAM block, and what khugepaged would do to it.

        A few blocks of 2 MiB in a step. Raises TargetGoneError.
        """
        khugepaged = ffi.new(
            "struct uffdb_khugepaged *",
            {
                "max_ptes_none": thp.max_ptes_none if thp else 0,
                "collapses_private": thp is not None and thp.collapses_private,
                "collapses_shared": thp is not None and thp.collapses_shared,
            },
        )
        out = ffi.new("struct uffdb_reclaim_measure *")
        left = ffi.new("struct uffdb_range *", (span.start, span.size_bytes))
        turn = Turn()
        while left.len:
            check(
                lib.uffdb_reclaimer_measure(
                    self._reclaimer, left, _MEASURED_BLOCKS, khugepaged, out
                ),
                "cannot read the target's page tables",
            )
            if turn.is_over():
                yield 0.0
        return ReclaimMeasure(
            **{name: int(getattr(out, name)) for name in ReclaimMeasure.__dataclass_fields__}
        )


def _open_or_none(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1  # it needs CAP_SYS_ADMIN, and a kernel with CONFIG_PROC_PAGE_MONITOR
