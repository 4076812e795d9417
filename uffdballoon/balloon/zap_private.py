# SPDX-License-Identifier: GPL-2.0-or-later
"""Zap private memory: MADV_DONTNEED, which only the target itself may ask for.

The call is injected, so that one thread of the target is stopped for as long
as it takes. That is kept under a budget: what does not fit is left for another
stop. Where it is the main thread, the target runs in between for as long as it
was stopped; a thread that nobody waits for gets a fiftieth of that, and
more when it has anything to do: it is stopped in its sleep alone.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from uffdballoon.balloon.report import ZapReport
from uffdballoon.errors import InjectionError
from uffdballoon.host.process import Advice
from uffdballoon.host.procfs import locked_bytes_of
from uffdballoon.model.addresses import HUGE_BYTES, HvaRange
from uffdballoon.model.packed import PackedRanges, RangeQueue
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injected_calls import PIDFD_SELF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.job import Job
    from uffdballoon.target.injector import Injector, RemoteThread

MAIN_STOP_BUDGET_NS = 2_000_000
IDLE_STOP_BUDGET_NS = 10_000_000  # call_rcu() of QEMU sleeps as long by itself, util/rcu.c
_MAX_RANGES = 1024  # UIO_MAXIOV
_FIRST_CHUNK_BYTES = 2 * HUGE_BYTES
_CALL_SHARE = 0.9  # of the budget; stopping and restoring take the rest
_CHUNKS = 3  # to a budget, so that it is not passed by much
_MAIN_REST, _IDLE_REST = 1.0, 0.02  # of a stop, before the next one


class _Pace:
    """How much a call shall take on: so that a few of them fill the budget."""

    def __init__(self) -> None:
        self.chunk_bytes = _FIRST_CHUNK_BYTES

    def learn(self, size_bytes: int, took_ns: int, budget_ns: float) -> None:
        wanted = int(size_bytes * budget_ns / _CHUNKS / max(took_ns, 1))
        self.chunk_bytes = max(HUGE_BYTES, min(wanted, 4 * self.chunk_bytes))


def zap_private(
    injector: Injector,
    ranges: PackedRanges | Sequence[HvaRange],
    *,
    stop_budget_ns: int | None = None,
    at_once: bool = True,
) -> Job[ZapReport]:
    """Drop the pages of private ranges, one stop of a thread in a step.

    One thread is stopped for about ``stop_budget_ns`` at most at a time; by default
    for 10 ms where nobody waits for it, and for 2 ms where it is the main thread.
    Without ``at_once`` process_madvise(2) is not called, which the target's seccomp filter bars.
    Raises InjectionError with what was done so far in its words; pages that
    were not reached keep their contents.
    """
    packed = ranges if isinstance(ranges, PackedRanges) else PackedRanges.of(ranges)
    queue = RangeQueue(packed)
    advice = _discarding(injector.pid)
    zapped_bytes = 0
    stops: list[int] = []
    rest_s = 0.0
    pace = _Pace()

    def one_stop(remote: RemoteThread) -> int:
        budget_ns = _CALL_SHARE * (
            stop_budget_ns or (MAIN_STOP_BUDGET_NS if remote.is_main else IDLE_STOP_BUDGET_NS)
        )
        deadline = time.monotonic_ns() + budget_ns
        done = 0
        while queue:
            started = time.monotonic_ns()
            chunk = queue.take(pace.chunk_bytes, _MAX_RANGES)
            size_bytes = _discard(remote, chunk, advice, at_once=at_once)
            done += size_bytes
            now = time.monotonic_ns()
            pace.learn(size_bytes, now - started, budget_ns)
            if now + (now - started) > deadline:
                break
        return done

    while queue:
        injected = injector.run(one_stop)
        zapped_bytes += injected.value
        stops.append(injected.stopped_ns)
        rest_s = (_MAIN_REST if injected.by_main else _IDLE_REST) * injected.stopped_ns / 1e9
        if queue:
            yield rest_s
    return ZapReport(zapped_bytes, tuple(stops), rest_s)


def _discarding(pid: int) -> Advice:
    """Choose the advice; MADV_DONTNEED is refused in locked memory (QEMU's mem-lock=on)."""
    return Advice.DONTNEED_LOCKED if locked_bytes_of(pid) else Advice.DONTNEED


def _discard(remote: RemoteThread, ranges: PackedRanges, advice: Advice, *, at_once: bool) -> int:
    """Drop the ranges in as few calls as the kernel allows; return their bytes."""
    if len(ranges) == 1 or not at_once or not _discard_at_once(remote, ranges, advice):
        for span in ranges.unpacked():
            _check(
                remote.call(arch.MADVISE, span.start, span.size_bytes, advice),
                span,
                remote.pid,
                advice,
            )
    return ranges.size_bytes


def _discard_at_once(remote: RemoteThread, ranges: PackedRanges, advice: Advice) -> bool:
    """Try process_madvise(2) on the target itself, which takes 1024 ranges a call."""
    at = remote.scratch(16 * len(ranges))
    remote.write(at, ranges.as_bytes())
    result = remote.call(arch.PROCESS_MADVISE, PIDFD_SELF, at, len(ranges), advice, 0)
    # EBADF, EINVAL, EPERM: a kernel without PIDFD_SELF, or without DONTNEED for oneself.
    return result == ranges.size_bytes


def _check(result: int, span: HvaRange, pid: int, advice: Advice) -> None:
    if result >= 0:
        return
    why = os.strerror(-result)
    hint = "`uffdballoon inspect PID` shows the page size and locking of each RAM block"
    if result == -errno.EINVAL:
        why = "the memory was locked meanwhile, or its pages are larger than the range"
        if advice is Advice.DONTNEED_LOCKED:
            why = "memory is locked, and this kernel discards none that is (before Linux 5.18)"
            hint = "start QEMU without -overcommit mem-lock=on, or take a newer kernel"
    raise InjectionError(
        f"process {pid} could not discard {span}", why=why, hint=hint, pid=pid, errno=-result
    )
