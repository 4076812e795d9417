# SPDX-License-Identifier: GPL-2.0-or-later
"""What a zap of private memory asks for, in which order, and how much of it at one stop.

A stand-in runs what is to be injected: calls take the time that the test says.
"""

from __future__ import annotations

import errno
import os
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.balloon import zap_private as module
from uffdballoon.balloon.zap_private import zap_private
from uffdballoon.errors import InjectionError
from uffdballoon.host.process import Advice
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, HvaRange
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injected_calls import PIDFD_SELF
from uffdballoon.target.injector import Injected, Injector

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.balloon.report import ZapReport

_BASE = 0x7F0000000000
_NS = 1_000_000


class _Target:
    """Runs calls on memory that is not there; ``ns_per_mib`` of each call, and a time for all.

    ``errnos`` are what madvise(2) and process_madvise(2) fail with, 0 where they do not.
    """

    def __init__(self, *, by_main: bool = False, ns_per_mib: int = 0, call_ns: int = 1000) -> None:
        self.pid = os.getpid()
        self.is_main = by_main
        self.ns_per_mib, self.call_ns = ns_per_mib, call_ns
        self.now_ns = 0
        self.errnos: dict[int, int] = {}
        self.zapped: list[tuple[int, int]] = []
        self.calls: list[int] = []
        self.advices: set[int] = set()
        self.stops: list[int] = []
        self.slower_after = -1
        self._memory = b""

    def scratch(self, size_bytes: int) -> int:
        assert size_bytes % 16 == 0
        return 0x1000

    def write(self, _address: int, data: bytes) -> None:
        self._memory = data

    def call(self, number: int, *args: int) -> int:
        self.calls.append(number)
        if self.errnos.get(number):
            return -self.errnos[number]
        if number == arch.MADVISE:
            ranges = [(args[0], args[1])]
            self.advices.add(args[2])
        else:
            pidfd, _, count, advice, flags = args
            assert (number, pidfd, flags) == (arch.PROCESS_MADVISE, PIDFD_SELF, 0)
            ranges = list(struct.iter_unpack("<QQ", self._memory))
            assert len(ranges) == count <= 1024
            self.advices.add(advice)
        size_bytes = sum(size for _, size in ranges)
        self.now_ns += self.call_ns + self.ns_per_mib * size_bytes // (1 << 20)
        self.zapped += ranges
        return 0 if number == arch.MADVISE else size_bytes

    def run(self, function: Callable[[Any], int]) -> Injected[int]:
        if len(self.stops) == self.slower_after:
            self.ns_per_mib *= 20
        begun_ns = self.now_ns
        value = function(self)
        self.stops.append(self.now_ns - begun_ns)
        return Injected(value, self.stops[-1], by_main=self.is_main)


def zap(target: _Target, ranges: list[HvaRange], *, locked: int = 0, **how: Any) -> ZapReport:  # noqa: ANN401
    """Zap ranges of a target in its own time; between two stops nobody waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "locked_bytes_of", lambda _pid: locked)
        patch.setattr(module, "time", SimpleNamespace(monotonic_ns=lambda: target.now_ns))
        job = zap_private(cast("Injector", target), ranges, **how)
        while True:
            try:
                next(job)
            except StopIteration as end:
                report: ZapReport = end.value
                return report


def _every_second_page(count: int) -> list[HvaRange]:
    return [HvaRange.of(_BASE + 2 * n * PAGE_BYTES, PAGE_BYTES) for n in range(count)]


def _joined(zapped: list[tuple[int, int]]) -> list[HvaRange]:
    joined: list[HvaRange] = []
    for start, size_bytes in zapped:
        if joined and joined[-1].end == start:
            joined[-1] = HvaRange.of(joined[-1].start, joined[-1].size_bytes + size_bytes)
        else:
            joined.append(HvaRange.of(start, size_bytes))
    return joined


def test_ranges_are_zapped_in_their_order_each_once() -> None:
    target, ranges = _Target(), _every_second_page(3000)
    report = zap(target, ranges)
    assert target.zapped == [(span.start, span.size_bytes) for span in ranges]
    assert report.zapped_bytes == 3000 * PAGE_BYTES


def test_no_call_takes_more_ranges_than_the_kernel_does() -> None:
    target = _Target()
    zap(target, _every_second_page(3000))
    assert target.calls.count(arch.PROCESS_MADVISE) == len(target.calls) >= 3


def test_a_range_alone_is_zapped_by_the_plain_call() -> None:
    target = _Target()
    zap(target, [HvaRange.of(_BASE, PAGE_BYTES)])
    assert target.calls == [arch.MADVISE]


def test_nothing_to_zap_stops_nobody() -> None:
    target = _Target()
    assert zap(target, []).stops_ns == ()
    assert target.stops == []


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.EPERM, errno.ENOSYS])
def test_where_the_kernel_takes_no_list_each_range_has_its_call(
    number: int,
) -> None:
    target, ranges = _Target(), _every_second_page(5)
    target.errnos[arch.PROCESS_MADVISE] = number
    assert zap(target, ranges).zapped_bytes == 5 * PAGE_BYTES
    assert target.zapped == [(span.start, span.size_bytes) for span in ranges]
    assert target.calls == [arch.PROCESS_MADVISE, *[arch.MADVISE] * 5]


def test_the_call_that_a_filter_bars_is_never_made() -> None:
    target = _Target()
    zap(target, _every_second_page(5), at_once=False)
    assert target.calls == [arch.MADVISE] * 5


@pytest.mark.parametrize(("by_main", "budget_ms"), [(True, 2), (False, 10)])
def test_a_thread_is_stopped_for_its_budget_at_most(budget_ms: int, *, by_main: bool) -> None:
    target = _Target(by_main=by_main, ns_per_mib=100_000)
    report = zap(target, [HvaRange.of(_BASE, 1 << 30)])
    assert report.zapped_bytes == 1 << 30
    assert max(target.stops) <= budget_ms * _NS
    assert len(target.stops) >= (1024 * 100_000) // (budget_ms * _NS)


def test_a_budget_that_is_given_counts_for_each_thread() -> None:
    target = _Target(by_main=True, ns_per_mib=100_000)
    zap(target, [HvaRange.of(_BASE, 1 << 30)], stop_budget_ns=50 * _NS)
    assert 10 * _NS < max(target.stops) <= 50 * _NS


def test_stops_are_used_well_once_the_pace_is_known() -> None:
    target = _Target(by_main=True, ns_per_mib=20_000)
    zap(target, [HvaRange.of(_BASE, 4 << 30)])
    assert sum(target.stops[1:-1]) / len(target.stops[1:-1]) > 1 * _NS


def test_a_target_that_slows_down_is_taken_on_in_smaller_pieces() -> None:
    target = _Target(by_main=True, ns_per_mib=20_000)
    target.slower_after = 10
    zap(target, [HvaRange.of(_BASE, 4 << 30)])
    assert max(target.stops[12:]) <= 2 * _NS


def test_however_slow_it_is_each_stop_gets_on() -> None:
    target = _Target(by_main=True, ns_per_mib=1_000_000_000)
    report = zap(target, [HvaRange.of(_BASE, 8 * HUGE_BYTES)])
    assert report.zapped_bytes == 8 * HUGE_BYTES
    assert len(target.stops) <= 8


def test_a_large_range_is_cut_at_whole_huge_pages_alone() -> None:
    target = _Target(by_main=True, ns_per_mib=1_000_000)
    span = HvaRange.of(_BASE + PAGE_BYTES, 32 * HUGE_BYTES)
    zap(target, [span])
    assert _joined(target.zapped) == [span]
    assert len(target.zapped) > 1
    assert all(start % HUGE_BYTES == 0 for start, _ in target.zapped[1:])


@given(
    pages=st.sets(st.integers(0, 4095), min_size=1, max_size=300),
    ns_per_mib=st.integers(0, 2_000_000),
    by_main=st.booleans(),
)
def test_whatever_there_is_is_zapped_once_and_nothing_else(
    pages: set[int], ns_per_mib: int, *, by_main: bool
) -> None:
    target = _Target(by_main=by_main, ns_per_mib=ns_per_mib)
    ranges = [HvaRange.of(_BASE + page * PAGE_BYTES, PAGE_BYTES) for page in sorted(pages)]
    report = zap(target, ranges)
    assert target.zapped == [(span.start, span.size_bytes) for span in ranges]
    assert report.zapped_bytes == len(pages) * PAGE_BYTES
    assert report.stops_ns == tuple(target.stops)


@pytest.mark.parametrize(
    ("locked", "advice"), [(0, Advice.DONTNEED), (1 << 30, Advice.DONTNEED_LOCKED)]
)
def test_locked_memory_is_zapped_by_the_advice_for_it(locked: int, advice: Advice) -> None:
    target = _Target()
    zap(target, _every_second_page(3), locked=locked)
    assert target.advices == {advice}


@pytest.mark.parametrize(
    ("number", "locked", "why", "hint"),
    [
        (errno.EINVAL, 0, "locked meanwhile", "inspect"),
        (errno.EINVAL, 1 << 30, "before Linux 5.18", "mem-lock=on"),
        (errno.ENOMEM, 0, os.strerror(errno.ENOMEM), "inspect"),
    ],
)
def test_what_the_kernel_refuses_is_told_with_its_range(
    number: int,
    locked: int,
    why: str,
    hint: str,
) -> None:
    target = _Target()
    target.errnos[arch.MADVISE] = number
    span = HvaRange.of(_BASE, PAGE_BYTES)
    with pytest.raises(InjectionError) as refused:
        zap(target, [span], locked=locked)
    error = refused.value
    assert str(span) in error.what
    assert why in error.why
    assert hint in error.hint
    assert (error.errno, error.pid) == (number, os.getpid())
