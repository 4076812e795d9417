# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's log as an observer where lines are lost, and where nothing bounds it."""

from __future__ import annotations

import errno
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.support.holding import detach, serve, wait_until
from tests.support.marks import REAL_QEMU
from uffdballoon.daemon import client
from uffdballoon.host import bounded_file
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.balloon import Verification
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.vmm.qemu import balloon_log

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
BALLOON = GpaRange.of(64 << 20, 8 << 20)
FEW = GpaRange.of(96 << 20, 8 * PAGE_BYTES)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0x108
TOUCHES = 1000
ROOM_BYTES = 16 * PAGE_BYTES
"""For some 1000 lines."""


@pytest.fixture(params=[Accel.KVM, Accel.TCG], ids=lambda accel: accel.value)
def guest(request: pytest.FixtureRequest, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=request.param, memory=Memory(size_bytes=RAM_BYTES)))
    for span in (OWNED, BALLOON, FEW):
        qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
    return qemu


def attach(qemu: Qemu, said: list[str] | None = None) -> Session:
    options = SessionOptions(
        pid=qemu.pid,
        qmp_path=str(qemu.qmp_path),
        observer=ObserverKind.MONITOR,
        policy=parse_policy("observe"),
    )
    return Session(options, (said if said is not None else []).append)


def check_owned(qemu: Qemu) -> None:
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_lines_that_a_full_file_system_lost_are_noticed_and_the_ledger_gets_right(
    guest: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloon_log, "MOST_BYTES", ROOM_BYTES)
    arguments = ("--observer", "monitor", "--qmp", guest.qmp_path, "--policy", "observe")
    with serve(guest, *arguments) as manager:
        manager.signal(signal.SIGSTOP)
        guest.guest.balloon_inflate(BALLOON)  # of more lines than there is room for
        manager.signal(signal.SIGCONT)
        wait_until(lambda: client.status(guest.pid).observed.resyncs > 0)
        # Nothing is held against a guest of which not all was told.
        guest.guest.touch(BALLOON, Access.WRITE)
        guest.guest.balloon_deflate(BALLOON)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        wait_until(lambda: client.status(guest.pid).ballooned_bytes == 0)
        state = client.status(guest.pid)
        assert state.touches.violations == 0
        assert state.balloon.unaccounted_bytes == 0
        while not is_held_to_its_word(guest, FEW):
            pass
        assert client.request(guest.pid, "verify", Verification).disagreements == ()
        detach(manager)
    assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
    check_owned(guest)


def is_held_to_its_word(qemu: Qemu, span: GpaRange) -> bool:
    """Have the guest give up a little and touch it; False where that is doubtful.

    Its lines may be those that fill the file system, of which more could be lost.
    """
    before = client.status(qemu.pid)
    qemu.guest.balloon_inflate(span)
    wait_until(lambda: client.status(qemu.pid).ballooned_bytes == span.size_bytes)
    qemu.guest.touch(span, Access.WRITE)
    qemu.guest.balloon_deflate(span)
    wait_until(lambda: client.status(qemu.pid).windows == 0)
    state = client.status(qemu.pid)
    if state.touches.violations - before.touches.violations == span.size_bytes // PAGE_BYTES:
        return True
    assert state.observed.resyncs > before.observed.resyncs
    return False


def test_where_no_tmpfs_can_be_had_a_memfd_serves_and_that_is_said(
    guest: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = SimpleNamespace(uffdb_bounded_file_open=lambda *_: -errno.EPERM)
    monkeypatch.setattr(bounded_file, "lib", refusing)
    said: list[str] = []
    with attach(guest, said) as session:
        assert any("no tmpfs for it (Operation not permitted)" in line for line in said)
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        state = session.status()
        assert state.ballooned_bytes == BALLOON.size_bytes
        assert state.observed.resyncs == state.balloon.unaccounted_bytes == 0
        guest.guest.balloon_deflate(BALLOON)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        session.settle()
        state = session.status()
        assert state.touches.violations == state.ballooned_bytes == state.windows == 0
    check_owned(guest)


def test_a_thousand_touches_without_a_deflate_are_a_thousand_violations(guest: Qemu) -> None:
    touched = GpaRange.of(BALLOON.start, TOUCHES * PAGE_BYTES)
    with attach(guest) as session:
        guest.guest.balloon_inflate(BALLOON)
        told = session.settle()
        guest.guest.touch(touched, Access.WRITE)
        told = session.settle()
        violations = [e for e in told if isinstance(e, TouchEvent)]
        assert session.status().touches.violations == len(violations) == TOUCHES
        assert {e.kind for e in violations} == {EventKind.VIOLATION}
        assert {e.gpa for e in violations} == set(range(touched.start, touched.end, PAGE_BYTES))
        assert {e.vcpu for e in violations} == {0}
        times = [e.time_ns for e in violations]
        assert times == sorted(times)
        assert session.verify().disagreements == ()
    check_owned(guest)
