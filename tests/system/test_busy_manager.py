# SPDX-License-Identifier: GPL-2.0-or-later
"""A manager with more to do than one thing: storms, long inflates, clients that do not read."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached
from tests.support.marks import REAL_QEMU
from uffdballoon.daemon import client
from uffdballoon.daemon.protocol import VERSION, decode_object, encode
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.errors import UffdballoonError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.records.changes import ChangeReport, Detaching
from uffdballoon.model.records.events import EventKind, Notice, TouchEvent, read_event
from uffdballoon.model.touch import Access, Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [*REAL_QEMU, pytest.mark.needs_kvm]

_RAM_BYTES = 320 << 20
_OWNED = GpaRange.of(32 << 20, 1 << 20)
_STORM = GpaRange.of(64 << 20, 128 << 20)
# In stops of 100 us its inflate takes a hundred times what one touch, or a reset, does.
_LONG = GpaRange.of(64 << 20, 1280 << 20)
_LONG_RAM = Memory(size_bytes=_LONG.size_bytes + _RAM_BYTES)
_PATIENCE_S = 60.0
_SEED = 11


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def qemu(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.KVM, memory=Memory(size_bytes=_RAM_BYTES)))


def _inflate(qemu: Qemu, span: GpaRange) -> ChangeReport:
    where = {"gpa": span.start, "size": span.size_bytes, "granule": "4k"}
    return client.request(qemu.pid, "inflate", ChangeReport, guest_agreed=True, **where)


class _Follower:
    """Follows on a thread of its own until it has seen, or been told to have missed, so much."""

    def __init__(self, pid: int, touches: int) -> None:
        self.seen: list[TouchEvent] = []
        self.missed = 0
        self._touches = touches
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(socket_path(pid)))
        self._connection.sendall(encode({"v": VERSION, "verb": "follow"}))
        self._lines = self._connection.makefile("rb")
        assert b'"ok":true' in self._lines.readline()  # what comes from now on is told
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with self._connection, self._lines:
            for line in self._lines:
                event = read_event(decode_object(line))
                if isinstance(event, TouchEvent):
                    self.seen.append(event)
                elif event.kind is EventKind.MISSED:
                    assert isinstance(event.count, int)
                    self.missed += event.count
                if self.accounted >= self._touches:
                    return

    @property
    def accounted(self) -> int:
        return len(self.seen) + self.missed

    def wait(self) -> None:
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive(), self.accounted


@contextlib.contextmanager
def _silent(pid: int) -> Iterator[socket.socket]:
    """Follow, and read nothing."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(pid)))
        connection.sendall(encode({"v": VERSION, "verb": "follow"}))
        yield connection


def test_a_storm_reaches_who_reads_and_holds_up_nobody(qemu: Qemu) -> None:
    touches = _STORM.size_bytes // PAGE_BYTES
    qemu.guest.fill(_OWNED, _SEED)
    checksum = qemu.guest.checksum(_OWNED)
    with attached(qemu, "--policy", "observe") as manager:
        _inflate(qemu, _STORM)
        reader = _Follower(qemu.pid, touches)
        with _silent(qemu.pid):
            leaver = _silent(qemu.pid)
            leaver.__enter__().recv(1)
            storm = qemu.guest.start_touch(_STORM, Access.WRITE)
            asked = 0
            while not storm.is_there(0.02):
                client.status(qemu.pid)
                asked += 1
                if asked == 1:
                    leaver.__exit__(None, None, None)
            assert storm.wait().count == touches
            reader.wait()
            assert asked
            status = client.status(qemu.pid)
        assert reader.accounted == touches == status.touches.violations
        sequences = [event.sequence for event in reader.seen]
        assert sequences == sorted(set(sequences))
        assert status.loop
        assert status.loop.failures == 0
        assert status.loop.events_missed > 0  # of the one that reads nothing
        client.request(qemu.pid, "detach", Detaching)
        assert manager.wait(_PATIENCE_S) == 0
    assert qemu.guest.checksum(_OWNED) == checksum


@pytest.mark.parametrize("how", ["detach", "terminate"])
def test_it_ends_in_the_middle_of_a_storm(qemu: Qemu, how: str) -> None:
    with attached(qemu, "--policy", "observe") as manager:
        _inflate(qemu, _STORM)
        storm = qemu.guest.start_touch(_STORM, Access.WRITE)
        _until(lambda: client.status(qemu.pid).touches.violations > 1000)
        if how == "detach":
            client.detach(qemu.pid)
        else:
            manager.terminate()
        assert manager.wait(_PATIENCE_S) == 0
        storm.wait()


def test_a_touch_is_paused_while_an_inflate_goes_on(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    small = GpaRange.of(_LONG.end, PAGE_BYTES)
    qemu = start_qemu(QemuOptions(accel=Accel.KVM, memory=_LONG_RAM))
    qemu.guest.fill(_OWNED, _SEED)
    checksum = qemu.guest.checksum(_OWNED)
    qemu.guest.fill(_LONG, _SEED, stride_bytes=PAGE_BYTES)
    with attached(qemu, "--policy", "pause", "--stop-budget-us", 100) as manager:
        _inflate(qemu, small)
        done: list[tuple[ChangeReport, int]] = []
        long = threading.Thread(target=lambda: done.append((_inflate(qemu, _LONG), time.time_ns())))
        long.start()
        _until(lambda: client.status(qemu.pid).ballooned_bytes > small.size_bytes)
        touch = qemu.guest.start_touch(small, Access.WRITE)
        _until(lambda: _kinds(qemu) & {EventKind.PAUSED})
        events = client.recent_events(qemu.pid)
        touched = next(event for event in events if isinstance(event, TouchEvent))
        assert (touched.gpa, touched.action) == (small.start, Action.PAUSE)
        long.join(_PATIENCE_S)
        (report, ended_ns) = done[0]
        assert report.done_bytes == _LONG.size_bytes
        paused_ns = next(event.time_ns for event in events if event.kind is EventKind.PAUSED)
        assert touched.time_ns < paused_ns < ended_ns
        assert not touch.is_there()  # the VM is stopped
        client.detach(qemu.pid)
        assert manager.wait(_PATIENCE_S) == 0
    qemu.monitor.execute("cont")
    touch.wait()
    assert qemu.guest.checksum(_OWNED) == checksum


def _kinds(qemu: Qemu) -> set[EventKind]:
    return {e.kind for e in client.recent_events(qemu.pid) if isinstance(e, Notice)}


def test_a_reset_in_the_middle_of_an_inflate_ends_it_and_all_is_the_guests(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    options = QemuOptions(accel=Accel.KVM, memory=_LONG_RAM, seabios=True)
    qemu = start_qemu(options)
    qemu.guest.fill(_LONG, _SEED, stride_bytes=PAGE_BYTES)
    with attached(qemu, "--policy", "observe", "--stop-budget-us", 100):
        refused: list[UffdballoonError] = []

        def inflate() -> None:
            try:
                _inflate(qemu, _LONG)
            except UffdballoonError as error:
                refused.append(error)

        long = threading.Thread(target=inflate)
        long.start()
        _until(lambda: client.status(qemu.pid).ballooned_bytes)
        qemu.guest.reset()
        long.join(_PATIENCE_S)
        (error,) = refused
        assert "reset in the middle" in error.what
        assert client.status(qemu.pid).ballooned_bytes == 0
        some = GpaRange.of(_LONG.start, 16 << 20)
        qemu.guest.fill(some, _SEED, stride_bytes=PAGE_BYTES)
        checksum = qemu.guest.checksum(some, stride_bytes=PAGE_BYTES)
        assert client.status(qemu.pid).touches.violations == 0
    assert qemu.guest.checksum(some, stride_bytes=PAGE_BYTES) == checksum


def test_many_ranges_are_taken_in_one_request(qemu: Qemu) -> None:
    qemu.guest.fill(_STORM, _SEED, stride_bytes=PAGE_BYTES)
    qemu.guest.fill(_OWNED, _SEED)
    checksum = qemu.guest.checksum(_OWNED)
    ranges = [[_STORM.start + 2 * i * PAGE_BYTES, PAGE_BYTES] for i in range(1000)]
    with attached(qemu):
        report = client.request(
            qemu.pid, "inflate", ChangeReport, ranges=ranges, granule="4k", guest_agreed=True
        )
        assert report.done_bytes == report.freed_bytes == 1000 * PAGE_BYTES
        assert [[span.gpa, span.size] for span in report.ranges] == ranges
        assert client.status(qemu.pid).ballooned_bytes == 1000 * PAGE_BYTES
        again = client.request(qemu.pid, "deflate", ChangeReport, ranges=ranges[:500], granule="4k")
        assert again.done_bytes == 500 * PAGE_BYTES
    assert qemu.guest.checksum(_OWNED) == checksum
