# SPDX-License-Identifier: GPL-2.0-or-later
"""Zap private memory: MADV_DONTNEED, which only the target itself may ask for.

The call is injected, so that one thread of the target is stopped for as long
as it takes. That is kept under a budget: what does not fit is left for another
stop, and in between the target runs for at least as long as it was stopped.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import deque
from typing import TYPE_CHECKING

from uffdballoon.balloon.report import ZapReport
from uffdballoon.errors import InjectionError
from uffdballoon.host.process import Advice
from uffdballoon.model.addresses import HUGE_BYTES, Hva, HvaRange
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injected_calls import PIDFD_SELF
from uffdballoon.target.injector import RemoteThread, run_in_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_STOP_BUDGET_NS = 2_000_000
_MAX_RANGES = 1024  # UIO_MAXIOV
_FIRST_CHUNK_BYTES = 2 * HUGE_BYTES
_CALL_SHARE = 0.5  # of the budget; stopping, restoring and our own scheduling take the rest


class _Queue:
    """Ranges still to be zapped, taken in pieces that shall last so long."""

    def __init__(self, ranges: Sequence[HvaRange]) -> None:
        self._ranges = deque(ranges)
        self.chunk_bytes = _FIRST_CHUNK_BYTES

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def take(self) -> list[HvaRange]:
        """Take the next ranges, at most the chunk; a cut falls on a 2 MiB boundary."""
        taken: list[HvaRange] = []
        left = self.chunk_bytes
        while self._ranges and left > 0 and len(taken) < _MAX_RANGES:
            span = self._ranges.popleft()
            if span.size_bytes > left:
                cut = Hva((span.start + left + HUGE_BYTES - 1) & -HUGE_BYTES)
                if cut < span.end:
                    self._ranges.appendleft(HvaRange(cut, span.end))
                    span = HvaRange(span.start, cut)
            taken.append(span)
            left -= span.size_bytes
        return taken

    def adapt(self, size_bytes: int, took_ns: int, budget_ns: float) -> None:
        """Size the next chunk so that it takes about a third of the budget."""
        wanted = int(size_bytes * budget_ns / 3 / max(took_ns, 1))
        self.chunk_bytes = max(HUGE_BYTES, min(wanted, 4 * self.chunk_bytes))


def zap_private(
    pid: int,
    ranges: Sequence[HvaRange],
    *,
    stop_budget_ns: int = DEFAULT_STOP_BUDGET_NS,
    at_once: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> ZapReport:
    """Drop the pages of private ranges; ``progress`` is told the bytes done so far.

    Without ``at_once`` process_madvise(2) is not called, which the target's seccomp filter bars.

    The main thread is stopped for about ``stop_budget_ns`` at most at a time.
    Raises InjectionError with what was done so far in its words; pages that
    were not reached keep their contents.
    """
    queue = _Queue(ranges)
    zapped_bytes = 0
    stops: list[int] = []
    call_budget_ns = stop_budget_ns * _CALL_SHARE

    def one_stop(remote: RemoteThread) -> int:
        deadline = time.monotonic_ns() + call_budget_ns
        done = 0
        while queue:
            started = time.monotonic_ns()
            chunk = queue.take()
            size_bytes = sum(span.size_bytes for span in chunk)
            _discard(remote, chunk, at_once=at_once)
            done += size_bytes
            took_ns = time.monotonic_ns() - started
            queue.adapt(size_bytes, took_ns, call_budget_ns)
            if time.monotonic_ns() + took_ns > deadline:
                break
        return done

    while queue:
        injected = run_in_target(pid, one_stop)
        zapped_bytes += injected.value
        stops.append(injected.stopped_ns)
        progress(zapped_bytes)
        if queue:
            time.sleep(injected.stopped_ns / 1e9)
    return ZapReport(zapped_bytes, tuple(stops))


def _discard(remote: RemoteThread, ranges: Sequence[HvaRange], *, at_once: bool) -> None:
    """Drop the ranges in as few calls as the kernel allows."""
    if len(ranges) == 1 or not at_once or not _discard_at_once(remote, ranges):
        for span in ranges:
            _check(
                remote.call(arch.MADVISE, span.start, span.size_bytes, Advice.DONTNEED),
                span,
                remote.pid,
            )


def _discard_at_once(remote: RemoteThread, ranges: Sequence[HvaRange]) -> bool:
    """Try process_madvise(2) on the target itself, which takes 1024 ranges a call."""
    at = remote.scratch(16 * len(ranges))
    remote.write(at, b"".join(struct.pack("<QQ", r.start, r.size_bytes) for r in ranges))
    expected = sum(span.size_bytes for span in ranges)
    result = remote.call(arch.PROCESS_MADVISE, PIDFD_SELF, at, len(ranges), Advice.DONTNEED, 0)
    # EBADF, EINVAL, EPERM: a kernel without PIDFD_SELF, or without DONTNEED for oneself.
    return result == expected


def _check(result: int, span: HvaRange, pid: int) -> None:
    if result < 0:
        raise InjectionError(
            f"process {pid} could not discard {span}",
            why=os.strerror(-result)
            if result != -errno.EINVAL
            else "the memory is locked, or its pages are larger than the range",
            hint="`uffdballoon inspect PID` shows the page size and locking of each RAM block",
            pid=pid,
            errno=-result,
        )
