# SPDX-License-Identifier: GPL-2.0-or-later
"""Inflate and deflate under a running fault loop, without a gap a touch could hide in.

Inflating: first the window, then the ledger, then the zap. A page is trapped
from the moment it is gone. Deflating: first the ledger, then the traps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.errors import UffdballoonError
from uffdballoon.kernel.fault_loop import FaultLoop, Resolution
from uffdballoon.kernel.ledger import Ledger
from uffdballoon.kernel.process import resident
from uffdballoon.kernel.uffd import Feature
from uffdballoon.memory.backing import BackingFile, open_backing_file
from uffdballoon.zap.private import zap_private
from uffdballoon.zap.shared import zap_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.attach.target import Target
    from uffdballoon.kernel.fault_loop import LoopOptions, ParkedTouch
    from uffdballoon.kernel.uffd import Userfaultfd
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.ram import RamBlock
    from uffdballoon.zap.report import ZapReport

_WANTED = (
    Feature.THREAD_ID
    | Feature.PAGEFAULT_FLAG_WP
    | Feature.MISSING_SHMEM
    | Feature.MISSING_HUGETLBFS
    | Feature.WP_HUGETLBFS_SHMEM
    | Feature.POISON
)


@dataclass(frozen=True, slots=True)
class Inflated:
    """``resident_before_bytes`` is what the pages held; the zap freed that much."""

    pages_bytes: int
    resident_before_bytes: int
    zap: ZapReport


class Enforcer:
    """The ledger, the windows and the fault loop of one target.

    Owns ``uffd``; closing lets everything go.
    """

    def __init__(  # noqa: PLR0913 - a session gives each of them
        self,
        target: Target,
        blocks: Sequence[RamBlock],
        uffd: Userfaultfd,
        *,
        known: Feature,
        options: LoopOptions,
        vcpus: Sequence[int],
        stop_budget_ns: int,
    ) -> None:
        self._target = target
        self._uffd = uffd
        self._stop_budget_ns = stop_budget_ns
        self._files: dict[RamBlock, BackingFile] = {}
        uffd.api(_WANTED & known)
        self.ledger = Ledger(blocks)
        self._pagemap = os.open(f"/proc/{target.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.loop = FaultLoop(
                uffd,
                self.ledger,
                pid=target.pid,
                pidfd=target.pidfd,
                pagemap_fd=self._pagemap,
                options=options,
            )
            self.loop.set_vcpus(vcpus)
            self.loop.start()
        except BaseException:
            os.close(self._pagemap)
            raise

    def close(self) -> None:
        """Stop the loop and let the kernel unregister everything and wake every waiter."""
        self.loop.stop()
        self._uffd.close()
        if self._pagemap >= 0:
            os.close(self._pagemap)
            self._pagemap = -1
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()

    def inflate(self, block: RamBlock, span: HvaRange, progress: Callable[[int], None]) -> Inflated:
        """Take the pages of ``span`` from the guest, which has agreed to it.

        When the zap fails, what was not zapped goes back to the guest: the
        ledger calls no page ballooned that is still there.
        """
        fresh_bytes = self.loop.inflate(span)
        try:
            held = sum(r.size_bytes for r in resident(self._pagemap, span))
            zapped = self._zap(block, span, progress)
        except UffdballoonError:
            self._give_back_what_is_there(span)
            raise
        return Inflated(fresh_bytes, held, zapped)

    def poison(self, touch: ParkedTouch) -> None:
        """Poison a held page that is there: it gave zeros to a reader before."""
        block = next(b for b in self.ledger.blocks if b.hva_range.overlaps(touch.span))
        self._zap(block, touch.span, lambda _: None)
        self.loop.resolve(touch, Resolution.POISON)

    def deflate(self, span: HvaRange) -> int:
        """Give pages back; return the bytes that were in the balloon."""
        return self.loop.deflate(span)

    def disagreements(self) -> list[HvaRange]:
        """List ballooned stretches that hold memory in the target: there should be none."""
        found: list[HvaRange] = []
        for block in self.ledger.blocks:
            for run in self.ledger.runs(block.hva_range):
                found.extend(resident(self._pagemap, run))
        return found

    def _give_back_what_is_there(self, span: HvaRange) -> None:
        if self._target.has_exited():
            return
        for run in resident(self._pagemap, span):
            self.loop.deflate(run)

    def _zap(self, block: RamBlock, span: HvaRange, progress: Callable[[int], None]) -> ZapReport:
        if block.shared:
            file = self._file_of(block)
            report = zap_shared(file.fd, [span], file_start=file.file_start)
            progress(report.zapped_bytes)
            return report
        return zap_private(
            self._target.pid, [span], stop_budget_ns=self._stop_budget_ns, progress=progress
        )

    def _file_of(self, block: RamBlock) -> BackingFile:
        if block not in self._files:
            self._files[block] = open_backing_file(self._target.pid, block)
        return self._files[block]
