# SPDX-License-Identifier: GPL-2.0-or-later
"""Under cap, what is trapped of a real guest, and what it takes back untrapped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, run, status_of
from tests.support.marks import REAL_QEMU
from tests.support.resources import resident_bytes_within
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.terms import TOLD, ContractKind, Terms, TermsChange
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.session.policies import PolicyWish

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

RAM_BYTES = 256 << 20
OWNED = GpaRange.of(32 << 20, 4 << 20)
BALLOON = GpaRange.of(64 << 20, 128 << 20)
HALVES = (GpaRange.of(64 << 20, 64 << 20), GpaRange.of(128 << 20, 64 << 20))
FLOOR_BYTES = 48 << 20
ROUNDS = {Accel.KVM: 5, Accel.TCG: 20}  # a fault takes ten times as long by nested KVM
SEED = 0x51AC
_PATIENCE_S = 60.0


@pytest.fixture(params=[Accel.KVM, Accel.TCG])
def two(request: pytest.FixtureRequest, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    options = QemuOptions(accel=request.param, memory=Memory(size_bytes=RAM_BYTES), processors=2)
    qemu = start_qemu(options)
    qemu.guest.fill(OWNED, SEED)
    return qemu


def _attach(qemu: Qemu, *, terms: Terms, always_trap: bool = False) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            policy=parse_policy("freeze"),
            terms=terms,
            always_trap=always_trap,
        )
    )


def _cap(floor_bytes: int = 0) -> Terms:
    return Terms(kind=ContractKind.CAP, floor_bytes=floor_bytes)


def _hold_to(session: Session, floor_bytes: int) -> None:
    change = TermsChange(floor_bytes=floor_bytes)
    session.policies.change(PolicyWish(policy=None, terms=change))


def _check_agreement(session: Session) -> None:
    found = session.verify()
    assert found.disagreements == ()
    span, _ = session.layout.to_hva(BALLOON)
    resident = resident_bytes_within(session.target.pid, span)
    assert session.attached.enforcer.ledger.ballooned_bytes == BALLOON.size_bytes - resident


def test_processors_that_take_all_they_can_never_pass_the_floor(two: Qemu) -> None:
    rounds = ROUNDS[two.options.accel]
    with _attach(two, terms=_cap()) as session:
        span, _ = session.layout.to_hva(BALLOON)
        for _ in range(rounds):
            session.inflate(BALLOON, Granule.THP, guest_agreed=True)
            _hold_to(session, FLOOR_BYTES)
            two.guest.start_on_second(HALVES[1], Access.WRITE)
            pending = two.guest.start_touch(HALVES[0], Access.WRITE)
            deadline = time.monotonic() + _PATIENCE_S
            while not session.held():
                assert time.monotonic() < deadline
                taken_bytes = resident_bytes_within(two.pid, span)
                assert taken_bytes <= BALLOON.size_bytes - FLOOR_BYTES
                session.drain_events()
            session.attached.enforcer.loop.look()
            assert session.attached.enforcer.ledger.ballooned_bytes >= FLOOR_BYTES
            assert resident_bytes_within(two.pid, span) <= BALLOON.size_bytes - FLOOR_BYTES
            _hold_to(session, 0)
            pages = HALVES[0].size_bytes // PAGE_BYTES
            assert pending.wait().count == pages
            assert two.guest.wait_for_second().count == pages
            for half in HALVES:
                for gpa in (half.start, half.end - PAGE_BYTES):
                    assert two.guest.read(gpa) == gpa
            session.drain_events()
            _check_agreement(session)
        touches = session.status().touches
        assert touches.taken_unseen_bytes > rounds * BALLOON.size_bytes // 4
        assert touches.granted < rounds * BALLOON.size_bytes // PAGE_BYTES // 8
        assert two.guest.verify(OWNED, SEED).bad_lines == 0
    two.guest.ping()
    assert two.guest.verify(OWNED, SEED).bad_lines == 0


def test_what_is_not_armed_is_shown_and_armed_when_the_guest_is_quiet(two: Qemu) -> None:
    with _attach(two, terms=_cap()) as session:
        session.inflate(BALLOON, Granule.THP, guest_agreed=True)
        state = session.status()
        assert (state.armed_bytes, state.unarmed_bytes) == (BALLOON.size_bytes, 0)
        assert not state.traps_always
        two.guest.touch(GpaRange.of(BALLOON.start, 4 * HUGE_BYTES), Access.WRITE)
        deadline = time.monotonic() + _PATIENCE_S
        while (state := session.status()).unarmed_bytes:
            assert time.monotonic() < deadline
        assert state.touches.granted + state.touches.taken_unseen_bytes // PAGE_BYTES >= 4
        assert state.ballooned_bytes <= BALLOON.size_bytes - 4 * HUGE_BYTES
        granted = state.touches.granted
        two.guest.write(BALLOON.end - PAGE_BYTES, 1)
        assert session.status().touches.granted == granted + 1
        _check_agreement(session)
        assert two.guest.verify(OWNED, SEED).bad_lines == 0


def test_whoever_asks_for_it_has_each_touch_trapped(two: Qemu) -> None:
    span = GpaRange.of(BALLOON.start, HUGE_BYTES)
    with _attach(two, terms=_cap(), always_trap=True) as session:
        session.inflate(BALLOON, Granule.THP, guest_agreed=True)
        two.guest.touch(span, Access.WRITE)
        state = session.status()
        assert state.traps_always
        assert state.touches.granted == span.size_bytes // PAGE_BYTES
        assert state.touches.taken_unseen_bytes == state.unarmed_bytes == 0
        _check_agreement(session)
    with _attach(two, terms=TOLD) as session:
        assert session.status().traps_always
    assert two.guest.verify(OWNED, SEED).bad_lines == 0


def test_the_command_shows_it(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.KVM, memory=Memory(size_bytes=RAM_BYTES)))
    cap = ("--contract", "cap", "--floor", "16M", "--policy", "observe")
    with attached(qemu, *cap):
        given = ("--gpa", hex(BALLOON.start), "--size", BALLOON.size_bytes, "--guest-agreed")
        assert run("inflate", qemu.pid, *given).returncode == 0
        qemu.guest.touch(GpaRange.of(BALLOON.start, 2 * HUGE_BYTES), Access.WRITE)
        touches = status_of(qemu)["touches"]
        assert touches["taken_unseen_bytes"] > 0
        assert "taken untrapped" in run("status", qemu.pid).stdout
    with attached(qemu, *cap, "--always-trap"):
        assert status_of(qemu)["traps_always"]
