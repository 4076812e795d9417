# SPDX-License-Identifier: GPL-2.0-or-later
"""Another client of the monitor has QEMU log elsewhere while its log is followed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, run
from tests.support.marks import REAL_QEMU
from uffdballoon.daemon import client
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.events import Event, EventKind
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.vmm.qemu.log_events import EVENTS
from uffdballoon.vmm.qemu.log_file import NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
BALLOON = GpaRange.of(64 << 20, 2 << 20)
MORE = GpaRange.of(80 << 20, 2 << 20)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0x107
_PATIENCE_S = 30.0
_MARK = "virtio_balloon_to_target"  # an event of the test's own: whoever sets a target logs a line


@pytest.fixture
def guest(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=RAM_BYTES)))
    for span in (OWNED, BALLOON, MORE):
        qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
    return qemu


def attach(qemu: Qemu) -> Session:
    options = SessionOptions(
        pid=qemu.pid,
        qmp_path=str(qemu.qmp_path),
        observer=ObserverKind.MONITOR,
        policy=parse_policy("observe"),
    )
    return Session(options)


def serve_until_taken(session: Session) -> list[Event]:
    """Until it is told, and QEMU has closed what it had open before, which is noticed, too."""
    told: list[Event] = []
    deadline = time.monotonic() + _PATIENCE_S
    while {EventKind.LOG_TAKEN, EventKind.RESYNC} - {e.kind for e in told} or _ours(session) != 1:
        assert time.monotonic() < deadline, session.status()
        told += session.settle()
    return told


def _ours(session: Session) -> int:
    return sum(NAME in link for link in session.target.fds().values())


def write_a_line(qemu: Qemu, megabytes: int) -> str:
    """Have QEMU log that a target was set; return a part of its line."""
    qemu.monitor.execute("trace-event-set-state", name=_MARK, enable=True)
    qemu.monitor.execute("balloon", value=megabytes << 20)
    qemu.monitor.execute("trace-event-set-state", name=_MARK, enable=False)
    return f"{_MARK} balloon target: {megabytes << 20:#x} "


def check_owned(qemu: Qemu) -> None:
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_a_log_that_another_client_took_is_taken_again_and_the_guest_followed(
    guest: Qemu, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    with attach(guest) as session:
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        guest.monitor.hmp(f"logfile {other}")
        kept = write_a_line(guest, 160)
        guest.guest.balloon_deflate(BALLOON)
        serve_until_taken(session)
        # It may have been taken back while nobody was told: that is held against nobody.
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        state = session.status()
        assert state.touches.violations == state.ballooned_bytes == 0
        guest.guest.balloon_inflate(MORE)
        session.settle()
        state = session.status()
        assert state.ballooned_bytes == MORE.size_bytes
        assert state.balloon.unaccounted_bytes == 0
        guest.guest.touch(GpaRange.of(MORE.start, 8 * PAGE_BYTES), Access.WRITE)
        assert session.status().touches.violations == 8
        guest.guest.balloon_deflate(MORE)
        session.settle()
        assert session.verify().ballooned_bytes == 0
        assert session.verify().disagreements == ()
        assert write_a_line(guest, 161) not in other.read_text()
    text = other.read_text()
    assert kept in text
    assert write_a_line(guest, 162) in other.read_text().removeprefix(text)
    check_owned(guest)


def test_events_that_another_client_switched_off_are_switched_on_again(guest: Qemu) -> None:
    with attach(guest) as session:
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        for name in EVENTS:
            guest.monitor.execute("trace-event-set-state", name=name, enable=False)
        guest.guest.balloon_deflate(BALLOON)
        serve_until_taken(session)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        guest.guest.balloon_inflate(MORE)
        session.settle()
        state = session.status()
        assert state.ballooned_bytes == MORE.size_bytes
        assert state.touches.violations == state.balloon.unaccounted_bytes == 0
        guest.guest.touch(GpaRange.of(MORE.start, 8 * PAGE_BYTES), Access.WRITE)
        assert session.status().touches.violations == 8
        assert session.verify().disagreements == ()
    for name in EVENTS:
        told = guest.monitor.execute("trace-event-get-state", name=name)
        assert told[0]["state"] == "disabled"
    assert write_a_line(guest, 160) in guest.log
    check_owned(guest)


def test_a_manager_in_its_sandbox_is_woken_and_takes_it_again(guest: Qemu, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with attached(guest, "--observer", "monitor") as manager:
        guest.monitor.hmp(f"logfile {other}")
        deadline = time.monotonic() + _PATIENCE_S
        while EventKind.LOG_TAKEN not in {e.kind for e in client.recent_events(guest.pid)}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        state = client.status(guest.pid)
        assert state.sandbox
        assert state.sandbox.on
        guest.guest.balloon_inflate(BALLOON)
        while client.status(guest.pid).ballooned_bytes != BALLOON.size_bytes:
            assert time.monotonic() < deadline, client.status(guest.pid)
            time.sleep(0.01)
        assert run("detach", guest.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0
    assert write_a_line(guest, 160) in other.read_text()
    check_owned(guest)
