# SPDX-License-Identifier: GPL-2.0-or-later
"""Inflate and deflate under a running fault loop, without a gap a touch could hide in.

Inflating: first the window, then the ledger, then the zap. A page is trapped
from the moment it is gone. Deflating: first the ledger, then the traps.
"""

from __future__ import annotations

import itertools
import operator
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from uffdballoon.balloon.report import ZapReport
from uffdballoon.balloon.zap_private import zap_private
from uffdballoon.balloon.zap_shared import zap_shared
from uffdballoon.core.fault_loop import FaultLoop, MemoryFile, Resolution, TargetFds
from uffdballoon.core.ledger import Ledger
from uffdballoon.core.reclaim import ReclaimPasses
from uffdballoon.errors import UffdballoonError, UnsupportedError
from uffdballoon.host.process import resident
from uffdballoon.host.uffd import Feature
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.job import Turn, run_job
from uffdballoon.model.packed import PackedRanges, RangeQueue
from uffdballoon.model.ram import Backing
from uffdballoon.target.backing import BackingFile, open_backing_file
from uffdballoon.target.private_file import is_never_filled, refuse_unless_ours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.core.fault_loop import LoopOptions, ParkedTouch
    from uffdballoon.core.relay import Lookout
    from uffdballoon.host.uffd import Userfaultfd
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.job import Job
    from uffdballoon.model.ram import RamBlock
    from uffdballoon.observe.observers import Observer
    from uffdballoon.target.injector import Injector

_WANTED = (
    Feature.THREAD_ID
    | Feature.PAGEFAULT_FLAG_WP
    | Feature.MISSING_SHMEM
    | Feature.MISSING_HUGETLBFS
    | Feature.WP_HUGETLBFS_SHMEM
    | Feature.MINOR_SHMEM
    | Feature.MINOR_HUGETLBFS
    | Feature.POISON
)


_STEP_NS = 8_000_000
_FIRST_PART_BYTES = 16 * HUGE_BYTES
_FIRST_PART_RANGES = 64
_MAX_RANGES = 1024
_LOOKED_AT_BYTES = 1 << 30  # at once


_MINOR = {Backing.HUGETLBFS: Feature.MINOR_HUGETLBFS}


def _untrapped(blocks: Sequence[RamBlock], known: Feature) -> list[str]:
    """Say where this kernel does not trap what another process fills."""
    return [
        f"not trapped: pages of RAM block {block.idstr!r} that another process fills "
        f"({block.backing.value}; this kernel has no userfaultfd minor faults for it)"
        for block in blocks
        if block.backing is not Backing.ANON
        and not known & _MINOR.get(block.backing, Feature.MINOR_SHMEM)
    ]


@dataclass(frozen=True, slots=True)
class Inflated:
    """``resident_before_bytes`` is what the pages held; the zap freed that much."""

    pages_bytes: int = 0
    resident_before_bytes: int = 0
    zap: ZapReport = field(default=ZapReport(0))

    def __add__(self, other: Inflated) -> Inflated:
        return Inflated(
            self.pages_bytes + other.pages_bytes,
            self.resident_before_bytes + other.resident_before_bytes,
            self.zap + other.zap,
        )


class _Pace:
    """How much a step takes on, so that it lasts about as long as it may."""

    def __init__(self) -> None:
        self.part_bytes = _FIRST_PART_BYTES
        self.part_ranges = _FIRST_PART_RANGES

    def learn(self, part: PackedRanges, took_ns: int) -> None:
        share = _STEP_NS / max(took_ns, 1)
        self.part_bytes = _within(int(part.size_bytes * share), HUGE_BYTES, 4 * self.part_bytes)
        most = min(_MAX_RANGES, 4 * self.part_ranges)
        self.part_ranges = _within(int(len(part) * share), 1, most)


def _within(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))


class Enforcer:
    """The ledger, the windows and the fault loop of one target.

    Owns ``uffd``; closing lets everything go.
    """

    def __init__(  # noqa: PLR0913 - a session gives each of them
        self,
        injector: Injector,
        blocks: Sequence[RamBlock],
        uffd: Userfaultfd,
        *,
        known: Feature,
        options: LoopOptions,
        observer: Observer,
        vcpus: Sequence[int],
        stop_budget_ns: int | None = None,
        memory: int = -1,
        resumed: bool = False,
        missed: bool = False,
        relay: Lookout | None = None,
        zaps_at_once: bool = True,
    ) -> None:
        """With ``memory``, the ledger lies there; ``resumed``: go on with what is in it.

        ``missed``: what the guest gave up and took back meanwhile was not observed. ``relay``
        is watched for resets from the first touch on. Without ``zaps_at_once`` the target may
        not call process_madvise(2).
        """
        self._injector = injector
        self._target = target = injector.target
        self._uffd = uffd
        self._stop_budget_ns = stop_budget_ns
        self._zaps_at_once = zaps_at_once
        self._files: dict[RamBlock, BackingFile] = {}
        self._refused: dict[RamBlock, UffdballoonError] = {}
        if resumed:
            _learn_features(uffd, observer.wanted & known)
        else:
            uffd.api((_WANTED | observer.wanted) & known)
        self.lacks = _untrapped(blocks, known)
        self.ledger = Ledger(blocks, memory)
        self._pagemap = self._mem = -1
        try:
            self._open_files()
            self._pagemap = os.open(f"/proc/{target.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._mem = os.open(f"/proc/{target.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            self.loop = FaultLoop(
                uffd,
                self.ledger,
                pid=target.pid,
                fds=TargetFds(target.pidfd, self._pagemap, self._mem, self._shared_files()),
                options=replace(options, observing=observer.observing, trace=observer.trace),
            )
            self.loop.set_vcpus(vcpus)
            self.passes = ReclaimPasses(
                self.ledger, self.loop, pidfd=target.pidfd, pagemap_fd=self._pagemap
            )
            if relay is not None and memory >= 0:
                relay.note_in(memory)
            self.loop.watch_resets(relay)
            if resumed:
                self.loop.resume(missed=missed)
            self.loop.start()
        except BaseException:
            self._close_fds()
            raise

    def close(self) -> None:
        """Stop the loop and let the kernel unregister everything and wake every waiter."""
        self.loop.stop()
        self._uffd.close()
        self.passes.close()
        self._close_fds()

    def _close_fds(self) -> None:
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
        for fd in (self._pagemap, self._mem):
            if fd >= 0:
                os.close(fd)
        self._pagemap = self._mem = -1

    def inflate(self, pieces: Sequence[tuple[RamBlock, HvaRange]]) -> Job[Inflated]:
        """Take ranges of RAM blocks from the guest, which has agreed to it; a part in a step.

        What is trapped in a step is zapped in it, or in the steps after it. When that fails, or
        the job is closed, what was not zapped goes back to the guest: the ledger
        calls no page ballooned that is still there.
        """
        done = Inflated()
        pace = _Pace()
        for block, group in itertools.groupby(pieces, operator.itemgetter(0)):
            queue = RangeQueue(PackedRanges.of(span for _, span in group))
            while queue:
                began_ns = time.monotonic_ns()
                part = queue.take(pace.part_bytes, pace.part_ranges)
                taken = yield from self._take(block, part)
                pace.learn(part, time.monotonic_ns() - began_ns)
                done += taken
                if queue:
                    yield taken.zap.rest_s
        return done

    def _take(self, block: RamBlock, part: PackedRanges) -> Job[Inflated]:
        spans = part.unpacked()
        fresh_bytes = held_bytes = 0
        try:
            turn = Turn()
            for span in spans:
                fresh_bytes += self.loop.inflate(span)
                held_bytes += sum(r.size_bytes for r in resident(self._pagemap, span))
                if turn.is_over():
                    yield 0.0
            yield 0.0  # a stop takes as long as this did: together they hold up a touch under pause
            zapped = yield from self._zap(block, part)
        except BaseException:
            for span in spans:
                self._give_back_what_is_there(span)
            raise
        finally:
            self.loop.inflated()
        return Inflated(fresh_bytes, held_bytes, zapped)

    def zap_again(self) -> int:
        """Zap what the guest gave up and has not used, but is there; return the bytes.

        The fault loop is held meanwhile, a few milliseconds at a time.
        """
        zapped_bytes = 0
        while True:
            with self.loop.unused() as spans:
                if not spans:
                    return zapped_bytes
                for block in self.ledger.blocks:
                    within = [span for span in spans if block.hva_range.overlaps(span)]
                    if within:
                        zap = self._zap(block, PackedRanges.of(within))
                        zapped_bytes += run_job(zap).zapped_bytes

    def poison(self, touch: ParkedTouch) -> None:
        """Poison a held page that is there: it gave zeros to a reader before."""
        block = next(b for b in self.ledger.blocks if b.hva_range.overlaps(touch.span))
        run_job(self._zap(block, PackedRanges.of([touch.span])))
        self.loop.resolve(touch, Resolution.POISON)

    def deflate(self, span: HvaRange) -> int:
        """Give pages back; return the bytes that were in the balloon."""
        return self.loop.deflate(span)

    def counting_resident(self, spans: Sequence[HvaRange]) -> Job[int]:
        """Count bytes that hold memory, a part in a step."""
        turn = Turn()
        found_bytes = 0
        for span in spans:
            for piece in span.pieces(_LOOKED_AT_BYTES):
                found_bytes += sum(r.size_bytes for r in resident(self._pagemap, piece))
                if turn.is_over():
                    yield 0.0
        return found_bytes

    def disagreeing(self) -> Job[list[HvaRange]]:
        """List ballooned stretches that hold memory in the target: there should be none."""
        self.loop.look()
        found: list[HvaRange] = []
        turn = Turn()
        for block in self.ledger.blocks:
            for run in self.ledger.runs(block.hva_range):
                for piece in run.pieces(_LOOKED_AT_BYTES):
                    found.extend(resident(self._pagemap, piece))
                    if turn.is_over():
                        yield 0.0
        return found

    def _give_back_what_is_there(self, span: HvaRange) -> None:
        if self._target.has_exited():
            return
        for run in resident(self._pagemap, span):
            self.loop.deflate(run)

    def _zap(self, block: RamBlock, ranges: PackedRanges) -> Job[ZapReport]:
        if block.shared:
            file = self._file_of(block)
            return zap_shared(file.fd, ranges.unpacked(), file_start=file.file_start)
        if (kept := self._files.get(block)) is not None:
            # Under each page that was written to, the file has one of its own, never used.
            zap_shared(kept.fd, ranges.unpacked(), file_start=kept.file_start)
        return (
            yield from zap_private(
                self._injector,
                ranges,
                stop_budget_ns=self._stop_budget_ns,
                at_once=self._zaps_at_once,
            )
        )

    def _open_files(self) -> None:
        """Open what zaps of files need, while we may: privileges are dropped later.

        What is refused of shared memory is told when a zap is asked for. Raises
        UnsupportedError for a private file that others may have.
        """
        for block in self.ledger.blocks:
            if block.backing is Backing.ANON:
                continue
            if block.shared:
                try:
                    self._file_of(block)
                except UffdballoonError as error:
                    self._refused[block] = error
                continue
            file = self._file_of(block)
            if is_never_filled(block, file):
                os.close(self._files.pop(block).fd)
            else:
                refuse_unless_ours(self._target.pid, block, file)

    def _shared_files(self) -> tuple[MemoryFile, ...]:
        return tuple(
            MemoryFile(file.fd, block.hva - file.file_start, block.hva_range)
            for block, file in self._files.items()
            if block.shared
        )

    def _file_of(self, block: RamBlock) -> BackingFile:
        if block in self._refused:  # while we had all privileges: now it would be another error
            raise self._refused[block]
        if block not in self._files:
            self._files[block] = open_backing_file(self._target.pid, block)
        return self._files[block]


def _learn_features(uffd: Userfaultfd, needed: Feature) -> None:
    uffd.learn_features()
    if needed & ~uffd.features:
        raise UnsupportedError(
            "this observer cannot go on with what the keeper held",
            why="the userfaultfd was set up for another one, and that is for good",
            hint="take the observer of before, or let go first: uffdballoon detach PID",
        )
