# SPDX-License-Identifier: GPL-2.0-or-later
"""The five observers behind one interface.

An observer prepares what the C library then follows by itself: a trace, events,
or the page tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uffdballoon.core.fault_loop import Observing
from uffdballoon.host.trace import Trace, TracedRam
from uffdballoon.host.uffd import Feature
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.ram import Backing
from uffdballoon.target.backing import fds_of_block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.model.part import Tick
    from uffdballoon.model.ram import RamBlock, Segment


class LogOfBalloon(Protocol):
    """A file that the VMM writes a line to for each page that its balloon takes or gives back.

    ``actual_pages`` were in the balloon, by its driver's word, when that began.
    """

    fd: int
    actual_pages: int

    def tick(self) -> Tick:
        """See to it that the VMM still writes there; raise TargetGoneError."""

    def close(self) -> None:
        """Have the VMM write where it wrote before."""


class Observer(Protocol):
    """What tells of the guest's inflates; ``wanted`` are features of the userfaultfd."""

    kind: ObserverKind
    observing: Observing
    wanted: Feature
    trace: Trace | None
    log: LogOfBalloon | None

    @property
    def how(self) -> str:
        """Say by what means, where there are several."""

    @property
    def missed(self) -> bool:
        """Whether what the guest did before, with a manager or without, was not observed."""

    def close(self) -> None:
        """Undo what was set up; the loop has been stopped."""


class DirectObserver:
    """Knows what this tool inflated itself, and nothing else."""

    kind = ObserverKind.DIRECT
    observing = Observing.NONE
    wanted = Feature(0)
    trace: Trace | None = None
    log: LogOfBalloon | None = None

    @property
    def how(self) -> str:
        return ""

    @property
    def missed(self) -> bool:
        return self.observing is not Observing.NONE

    def close(self) -> None:
        pass


class TraceObserver(DirectObserver):
    """Reads the discards and take-backs of QEMU's threads as their system calls tell them.

    QEMU, hw/virtio/virtio-balloon.c: balloon_inflate_page() discards by madvise
    or fallocate, balloon_deflate_page() advises MADV_WILLNEED.
    """

    kind = ObserverKind.TRACE
    observing = Observing.TRACE

    def __init__(self, pid: int, blocks: Sequence[RamBlock], kept: Sequence[int] = ()) -> None:
        """Start tracing, or go on with a trace that was ``kept``; raise what Trace raises."""
        files = [
            file
            for block in blocks
            if block.backing is not Backing.ANON
            for file in fds_of_block(pid, block)
        ]
        self._trace = Trace(pid, files, kept=kept)
        self.trace = self._trace

    @property
    def how(self) -> str:
        return self._trace.source

    @property
    def missed(self) -> bool:
        return not self._trace.goes_on

    def close(self) -> None:
        self._trace.close()


class MonitorObserver(DirectObserver):
    """Reads what QEMU itself tells of each page, before it discards it and answers the guest.

    It need not tell of what the guest gave up before.
    """

    kind = ObserverKind.MONITOR
    observing = Observing.TRACE

    def __init__(
        self, pid: int, open_log: Callable[[], LogOfBalloon], segments: Sequence[Segment]
    ) -> None:
        """Begin to read; raise what ``open_log`` and Trace.of_log() raise."""
        ram = [TracedRam(segment.gpa, segment.hva, segment.size_bytes) for segment in segments]
        self.log = self._log = open_log()
        try:
            self.trace = self._trace = Trace.of_log(
                pid, self._log.fd, ram, actual_pages=self._log.actual_pages
            )
        except BaseException:
            self._log.close()
            raise

    @property
    def how(self) -> str:
        return self._trace.source

    def close(self) -> None:
        self._trace.close()
        self._log.close()


class EventObserver(DirectObserver):
    """Has userfaultfd tell of every discard; QEMU waits at each until it was read."""

    kind = ObserverKind.EVENT
    observing = Observing.EVENTS
    wanted = (
        Feature.EVENT_REMOVE
        | Feature.EVENT_REMAP
        | Feature.EVENT_UNMAP
        | Feature.PAGEFAULT_FLAG_WP
        | Feature.WP_HUGETLBFS_SHMEM
    )


class ScanObserver(DirectObserver):
    """Compares what memory is there with what was there before, each second."""

    kind = ObserverKind.SCAN
    observing = Observing.SCAN
