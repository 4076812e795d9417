# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own balloon, followed: a guest that drives its balloon queues itself."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached
from tests.support.marks import REAL_QEMU
from tests.support.resources import resident_bytes_within
from uffdballoon.bench.managed import voluntary_switches
from uffdballoon.errors import UsageError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange, Hva, HvaRange
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import BalloonAccount
from uffdballoon.model.records.events import Event, EventKind
from uffdballoon.model.terms import TOLD, ContractKind, Terms
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
BALLOON = GpaRange.of(64 << 20, 4 << 20)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0xABC
CAP = Terms(kind=ContractKind.CAP, floor_bytes=0)
_PATIENCE_S = 30.0


def attach(qemu: Qemu, observer: ObserverKind | None, terms: Terms = TOLD) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            observer=observer,
            terms=terms,
            policy=parse_policy("observe"),
        )
    )


@pytest.fixture(params=[Accel.KVM, Accel.TCG], ids=lambda accel: accel.value)
def options(request: pytest.FixtureRequest) -> QemuOptions:
    return QemuOptions(accel=request.param, memory=Memory(size_bytes=RAM_BYTES))


@pytest.fixture
def guest(options: QemuOptions, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(options)
    qemu.guest.fill(OWNED, SEED, stride_bytes=PAGE_BYTES)
    qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
    return qemu


def test_the_trace_follows_in_and_out(guest: Qemu) -> None:
    with attach(guest, None) as session:
        guest.guest.balloon_inflate(BALLOON)
        told = session.settle()
        state = session.status()
        assert state.observer is ObserverKind.TRACE
        assert state.ballooned_bytes == state.reclaimed_bytes == BALLOON.size_bytes
        assert state.balloon == BalloonAccount(
            actual_bytes=RAM_BYTES - BALLOON.size_bytes, unaccounted_bytes=0
        )
        assert state.windows == 1
        assert [e.size for e in told if e.kind is EventKind.INFLATE] == [BALLOON.size_bytes]
        guest.guest.balloon_deflate(BALLOON)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        told = session.settle()
        state = session.status()
        assert [e.size for e in told if e.kind is EventKind.DEFLATE] == [BALLOON.size_bytes]
        assert state.touches.violations == state.ballooned_bytes == state.windows == 0
        assert session.verify().disagreements == ()
        assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
    assert guest.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_a_touch_without_a_deflate_is_a_violation(guest: Qemu) -> None:
    touched = GpaRange.of(BALLOON.start, 1000 * PAGE_BYTES)
    with attach(guest, ObserverKind.TRACE) as session:
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        guest.guest.touch(touched, Access.WRITE)
        violations = [e for e in session.settle() if e.kind is EventKind.VIOLATION]
        assert session.status().touches.violations == len(violations) == 1000
        assert {e.gpa for e in violations} == set(range(touched.start, touched.end, PAGE_BYTES))
        assert {e.vcpu for e in violations} == {0}
        assert all(e.time_ns > 0 for e in violations)
        assert session.verify().disagreements == ()
    assert guest.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


@pytest.mark.parametrize("kind", [ObserverKind.EVENT, ObserverKind.SCAN])
def test_what_is_given_up_is_seen_by(kind: ObserverKind, guest: Qemu) -> None:
    with attach(guest, kind, CAP) as session:
        session.settle()
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        state = session.status()
        assert state.observer is kind
        assert state.ballooned_bytes == state.reclaimed_bytes == BALLOON.size_bytes
        guest.guest.balloon_deflate(BALLOON)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        session.settle()
        state = session.status()
        assert state.ballooned_bytes == 0
        assert state.touches.granted == BALLOON.size_bytes // PAGE_BYTES
        assert session.verify().disagreements == ()
        assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
    assert guest.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


@pytest.mark.parametrize("kind", [ObserverKind.EVENT, ObserverKind.SCAN])
def test_told_is_refused_to_who_sees_no_deflates(kind: ObserverKind, guest: Qemu) -> None:
    with pytest.raises(UsageError, match="cannot serve the contract told"):
        attach(guest, kind)
    guest.guest.ping()


def test_what_a_locked_qemu_cannot_give_up_stays_the_guests(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    memory = Memory(size_bytes=RAM_BYTES)
    guest = start_qemu(QemuOptions(memory=memory, extra=("-overcommit", "mem-lock=on")))
    guest.guest.fill(BALLOON, SEED)
    with attach(guest, ObserverKind.TRACE) as session:
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        state = session.status()
        assert state.observed.refused_discards == BALLOON.size_bytes // PAGE_BYTES
        assert state.ballooned_bytes == state.touches.violations == 0
        assert guest.guest.verify(BALLOON, SEED).bad_lines == 0
        guest.guest.fill(BALLOON, SEED)
        assert session.settle() == []
        assert session.status().touches.violations == 0


def test_a_reset_empties_the_balloon(
    options: QemuOptions, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    guest = start_qemu(replace(options, seabios=True))
    guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
    with attach(guest, ObserverKind.TRACE) as session:
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
        assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


@pytest.mark.parametrize(
    "memory",
    [
        Memory(size_bytes=RAM_BYTES, backing=Backing.MEMFD, share=True),
        Memory(size_bytes=RAM_BYTES, backing=Backing.MEMFD),
        Memory(size_bytes=RAM_BYTES, backing=Backing.TMPFS, share=True),
    ],
    ids=["memfd-shared", "memfd-private", "tmpfs-shared"],
)
def test_shared_and_file_memory_is_followed(
    memory: Memory, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    qemu.guest.fill(OWNED, SEED)
    qemu.guest.fill(BALLOON, SEED)
    with attach(qemu, ObserverKind.TRACE) as session:
        qemu.guest.balloon_inflate(BALLOON)
        session.settle()
        assert session.status().ballooned_bytes == BALLOON.size_bytes
        assert session.verify().disagreements == ()
        qemu.guest.touch(GpaRange.of(BALLOON.start, 3 * PAGE_BYTES), Access.WRITE)
        assert session.status().touches.violations == 3
        qemu.guest.balloon_deflate(BALLOON)
        qemu.guest.fill(BALLOON, SEED)
        session.settle()
        assert session.status().touches.violations == 3
        assert session.status().ballooned_bytes == 0
        assert qemu.guest.verify(BALLOON, SEED).bad_lines == 0
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_greedy_guest_never_holds_more_than_the_floor_leaves(guest: Qemu) -> None:
    floor_bytes = BALLOON.size_bytes // 2
    terms = Terms(kind=ContractKind.CAP, floor_bytes=floor_bytes)
    options = SessionOptions(
        pid=guest.pid,
        qmp_path=str(guest.qmp_path),
        policy=parse_policy("zero-read,freeze"),
        terms=terms,
    )
    with Session(options) as session:
        guest.guest.balloon_inflate(BALLOON)
        session.settle()
        (block,) = session.layout.blocks
        hva = block.hva_range.start + BALLOON.start
        span = HvaRange.of(Hva(hva), BALLOON.size_bytes)
        pending = guest.guest.start_touch(BALLOON, Access.WRITE)
        samples = []
        while not session.held():
            samples.append(resident_bytes_within(guest.pid, span))
            session.drain_events()
        samples += [resident_bytes_within(guest.pid, span) for _ in range(20)]
        assert max(samples) <= BALLOON.size_bytes - floor_bytes
        assert samples[-1] == BALLOON.size_bytes - floor_bytes
        assert not pending.is_there(0.1)
    pending.wait()
    assert guest.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_a_manager_of_a_quiet_guest_is_not_woken(guest: Qemu) -> None:
    with attached(guest) as manager:
        guest.guest.balloon_inflate(BALLOON)
        deadline = time.monotonic() + _PATIENCE_S
        # What it tells and tidies after an inflate comes to an end.
        while _switches_within(manager.pid, 2.0):
            assert time.monotonic() < deadline
        assert _switches_within(manager.pid, 5.0) == 0
    guest.guest.ping()


def _switches_within(pid: int, seconds: float) -> int:
    before = voluntary_switches(pid)
    time.sleep(seconds)
    return voluntary_switches(pid) - before
