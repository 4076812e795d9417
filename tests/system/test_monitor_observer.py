# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own balloon, followed by what QEMU tells its log."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, refused, run
from tests.support.marks import REAL_QEMU
from uffdballoon.daemon import client
from uffdballoon.errors import UsageError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import BalloonAccount, Verification
from uffdballoon.model.records.events import Event, EventKind
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.vmm.qemu.log_events import EVENTS
from uffdballoon.vmm.qemu.log_file import NAME

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
BALLOON = GpaRange.of(64 << 20, 4 << 20)
MORE = GpaRange.of(80 << 20, 32 << 20)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0x106
BY_MONITOR = ("--observer", "monitor")
_PATIENCE_S = 30.0


def options_for(qemu: Qemu) -> SessionOptions:
    return SessionOptions(
        pid=qemu.pid,
        qmp_path=str(qemu.qmp_path),
        observer=ObserverKind.MONITOR,
        policy=parse_policy("observe"),
    )


@pytest.fixture(params=[Accel.KVM, Accel.TCG], ids=lambda accel: accel.value)
def options(request: pytest.FixtureRequest) -> QemuOptions:
    return QemuOptions(accel=request.param, memory=Memory(size_bytes=RAM_BYTES))


@pytest.fixture
def guest(options: QemuOptions, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(options)
    for span in (OWNED, BALLOON, MORE):
        qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
    return qemu


def wait_until_ballooned(qemu: Qemu, size_bytes: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while client.status(qemu.pid).ballooned_bytes != size_bytes:
        assert time.monotonic() < deadline, client.status(qemu.pid)
        time.sleep(0.01)


def check_verified(qemu: Qemu) -> None:
    found = client.request(qemu.pid, "verify", Verification)
    assert (found.disagreements, found.unaccounted_bytes) == ((), 0)


def check_as_before(qemu: Qemu) -> None:
    """The events are off, and the log is where it was."""
    for name in EVENTS:
        told = qemu.monitor.execute("trace-event-get-state", name=name)
        assert told[0]["state"] == "disabled"
    links = [str(fd.readlink()) for fd in Path(f"/proc/{qemu.pid}/fd").iterdir()]
    assert not any(NAME in link for link in links)
    qemu.monitor.execute("trace-event-set-state", name="virtio_balloon_to_target", enable=True)
    qemu.monitor.execute("balloon", value=RAM_BYTES)
    assert "virtio_balloon_to_target" in qemu.log
    assert "handle_output" not in qemu.log


def check_owned(qemu: Qemu) -> None:
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_the_log_follows_in_and_out(guest: Qemu) -> None:
    said: list[str] = []
    with Session(options_for(guest), said.append) as session:
        assert "observer monitor by log: as asked for" in said
        guest.guest.balloon_inflate(BALLOON)
        told = session.settle()
        state = session.status()
        assert state.observer is ObserverKind.MONITOR
        assert state.ballooned_bytes == state.reclaimed_bytes == BALLOON.size_bytes
        assert state.balloon == BalloonAccount(
            actual_bytes=RAM_BYTES - BALLOON.size_bytes, unaccounted_bytes=0
        )
        assert [e.size for e in told if e.kind is EventKind.INFLATE] == [BALLOON.size_bytes]
        guest.guest.balloon_deflate(BALLOON)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        told = session.settle()
        state = session.status()
        assert [e.size for e in told if e.kind is EventKind.DEFLATE] == [BALLOON.size_bytes]
        assert state.touches.violations == state.ballooned_bytes == state.windows == 0
        assert session.verify().disagreements == ()
        assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
    check_as_before(guest)
    check_owned(guest)


def test_a_touch_without_a_deflate_is_a_violation(guest: Qemu) -> None:
    touched = GpaRange.of(BALLOON.start, 500 * PAGE_BYTES)
    with Session(options_for(guest)) as session:
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        guest.guest.touch(touched, Access.WRITE)
        violations = [e for e in session.settle() if e.kind is EventKind.VIOLATION]
        assert session.status().touches.violations == len(violations) == 500
        assert {e.gpa for e in violations} == set(range(touched.start, touched.end, PAGE_BYTES))
        assert session.verify().disagreements == ()
    check_as_before(guest)
    check_owned(guest)


def test_memory_in_a_file_is_followed(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    memory = Memory(size_bytes=RAM_BYTES, backing=Backing.MEMFD, share=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    qemu.guest.fill(OWNED, SEED, stride_bytes=PAGE_BYTES)
    qemu.guest.fill(BALLOON, SEED)
    with Session(options_for(qemu)) as session:
        qemu.guest.balloon_inflate(BALLOON)
        session.settle()
        assert session.status().ballooned_bytes == BALLOON.size_bytes
        qemu.guest.touch(GpaRange.of(BALLOON.start, 3 * PAGE_BYTES), Access.WRITE)
        assert session.status().touches.violations == 3
        assert session.verify().disagreements == ()
    check_owned(qemu)


def test_a_reset_empties_the_balloon(
    options: QemuOptions, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    guest = start_qemu(replace(options, seabios=True))
    with Session(options_for(guest)) as session:
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        guest.guest.reset()
        deadline = time.monotonic() + _PATIENCE_S
        told: list[Event] = []
        while not any(e.kind is EventKind.RESET for e in told):
            assert time.monotonic() < deadline
            told += session.settle()
        assert session.status().ballooned_bytes == session.status().windows == 0
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        guest.guest.balloon_inflate(OWNED)
        session.settle()
        assert session.status().ballooned_bytes == OWNED.size_bytes
        assert session.status().touches.violations == 0
        assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_a_manager_in_its_sandbox_follows_and_gives_the_log_back(guest: Qemu) -> None:
    with attached(guest, *BY_MONITOR) as manager:
        state = client.status(guest.pid)
        assert state.sandbox
        assert state.sandbox.on
        guest.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(guest, BALLOON.size_bytes)
        guest.guest.balloon_deflate(BALLOON)
        wait_until_ballooned(guest, 0)
        assert client.status(guest.pid).touches.violations == 0
        assert run("detach", guest.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0
    check_as_before(guest)
    check_owned(guest)


def test_a_manager_that_is_stopped_holds_nobody_up_and_follows_after(guest: Qemu) -> None:
    with attached(guest, *BY_MONITOR) as manager:
        guest.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(guest, BALLOON.size_bytes)
        os.kill(manager.pid, signal.SIGSTOP)
        guest.guest.balloon_inflate(MORE)
        assert guest.monitor.balloon_bytes() == RAM_BYTES - BALLOON.size_bytes - MORE.size_bytes
        os.kill(manager.pid, signal.SIGCONT)
        wait_until_ballooned(guest, BALLOON.size_bytes + MORE.size_bytes)
        check_verified(guest)
    check_owned(guest)


def test_a_manager_that_is_killed_leaves_a_guest_that_the_next_one_follows(guest: Qemu) -> None:
    with attached(guest, *BY_MONITOR) as manager:
        guest.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(guest, BALLOON.size_bytes)
        manager.kill()
        manager.wait(_PATIENCE_S)
    guest.guest.balloon_deflate(BALLOON)
    guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
    with attached(guest, *BY_MONITOR) as manager:
        guest.guest.balloon_inflate(MORE)
        wait_until_ballooned(guest, MORE.size_bytes)
        check_verified(guest)
        assert run("detach", guest.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0
    check_as_before(guest)
    for span in (OWNED, BALLOON):
        assert guest.guest.verify(span, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_it_is_refused_without_a_monitor(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=128 << 20)))
    with pytest.raises(UsageError, match="observer monitor needs the monitor"):
        Session(replace(options_for(qemu), qmp_path=None))
    said = refused(2, "attach", qemu.pid, "--qmp", "none", *BY_MONITOR)
    assert "needs the monitor" in said
    qemu.guest.ping()
