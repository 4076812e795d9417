# SPDX-License-Identifier: GPL-2.0-or-later
"""A limit that is held by free page reporting, on a real Linux guest, without an inflate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from uffdballoon.errors import UnsupportedError, UsageError
from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Accel, Memory, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.terms import ContractKind, Terms, TermsChange
from uffdballoon.session import Session, SessionOptions
from uffdballoon.session.policies import PolicyWish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.model.records.status import Status

pytestmark = [*REAL_QEMU, pytest.mark.needs_linux_guest]

RAM_BYTES = 512 << 20
HOG_BYTES = 320 << 20
FLOOR_BYTES = 128 << 20
OWNED_BYTES = 32 << 20
ENOUGH_BYTES = 192 << 20  # of what the hog leaves, to be reported
_PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def linux() -> Iterator[LinuxQemu]:
    options = QemuOptions(memory=Memory(size_bytes=RAM_BYTES), free_page_reporting=True)
    with LinuxQemu(options) as qemu:
        yield qemu


def _attach(qemu: LinuxQemu, *, floor_bytes: int = 0, policy: str = "observe") -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            policy=parse_policy(policy),
            terms=Terms(kind=ContractKind.CAP, floor_bytes=floor_bytes, count_reported=True),
            observer=ObserverKind.TRACE,
        )
    )


def _serve_until(session: Session, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        session.settle(1.0)


def _ballooned(session: Session) -> int:
    return session.attached.enforcer.ledger.ballooned_bytes


def _have_it_report(session: Session, qemu: LinuxQemu) -> None:
    """Have the guest use memory and free it, which its driver reports two seconds after."""
    assert qemu.guest.check(f"guestwork hog {HOG_BYTES}") == f"touched={HOG_BYTES}\n"
    _serve_until(session, lambda: _ballooned(session) >= ENOUGH_BYTES)


def _taken_back(status: Status) -> int:
    return status.observed.regained_bytes + status.touches.taken_unseen_bytes


def _check_agreement(session: Session) -> None:
    session.settle()
    found = session.verify()
    assert found.disagreements == ()
    assert found.unaccounted_bytes == 0
    assert session.status().observed.reported_in_balloon_bytes == found.ballooned_bytes


def test_what_is_reported_counts_and_comes_back_as_huge_pages(linux: LinuxQemu) -> None:
    owned = linux.guest.start(f"guestwork memory {OWNED_BYTES} 3 3600")
    owned.read_line()
    with _attach(linux) as session:
        _have_it_report(session, linux)
        _check_agreement(session)
        before = session.status()
        huge = huge_bytes(linux.pid)
        linux.guest.check(f"guestwork hog {ENOUGH_BYTES}")
        after = session.status()
        regained = _taken_back(after) - _taken_back(before)
        assert regained >= ENOUGH_BYTES // 2
        assert after.touches.violations == 0
        # As blocks and not page by page, which would be 512 grants each.
        granted = after.touches.granted - before.touches.granted
        assert granted < 2 * regained // HUGE_BYTES
        assert huge_bytes(linux.pid) >= huge + regained // 2
        _serve_until(session, lambda: _ballooned(session) >= ENOUGH_BYTES)
        _check_agreement(session)
    linux.guest.check("kill -TERM $(pidof guestwork | tr ' ' '\\n' | sort -n | tail -1)")
    assert "bad=0" in owned.wait().output


def test_beyond_the_limit_a_touch_waits_until_there_is_more(linux: LinuxQemu) -> None:
    with _attach(linux, policy="freeze") as session:
        _have_it_report(session, linux)
        floor = TermsChange(floor_bytes=FLOOR_BYTES)
        session.policies.change(PolicyWish(policy=None, terms=floor))
        hog = linux.guest.start(f"guestwork hog {HOG_BYTES}")
        # Nothing is asked of QEMU meanwhile: a vCPU that is held holds up more than itself.
        deadline = time.monotonic() + _PATIENCE_S
        while not session.held():
            assert time.monotonic() < deadline
            session.drain_events()
            assert _ballooned(session) >= FLOOR_BYTES
        assert _ballooned(session) >= FLOOR_BYTES
        assert _ballooned(session) < FLOOR_BYTES + HUGE_BYTES
        assert session.touch_counts().violations >= 1
        assert not hog.is_there()
        no_floor = TermsChange(limit_bytes=session.layout.ram_bytes)
        assert session.policies.change(PolicyWish(policy=None, terms=no_floor)).went_on == 1
        assert hog.wait().output == f"touched={HOG_BYTES}\n"
        _serve_until(session, lambda: _ballooned(session) >= ENOUGH_BYTES)
        _check_agreement(session)
    assert linux.guest.check("echo alive") == "alive\n"


def test_a_driver_inflates_what_was_reported_and_both_are_known(linux: LinuxQemu) -> None:
    asked_bytes = 128 << 20
    with _attach(linux) as session:
        _have_it_report(session, linux)
        session.ask_balloon(RAM_BYTES - asked_bytes)
        _serve_until(
            session, lambda: session.balloon_progress().actual_bytes == RAM_BYTES - asked_bytes
        )
        session.settle()
        found = session.verify()
        assert (found.disagreements, found.unaccounted_bytes) == ((), 0)
        reported = session.status().observed.reported_in_balloon_bytes
        assert found.ballooned_bytes == reported + asked_bytes
        session.ask_balloon(RAM_BYTES)
        _serve_until(session, lambda: session.balloon_progress().actual_bytes == RAM_BYTES)
        _serve_until(session, lambda: _ballooned(session) >= ENOUGH_BYTES)
        _check_agreement(session)


def test_on_hugetlbfs_what_is_reported_counts_as_well() -> None:
    memory = Memory(size_bytes=RAM_BYTES, backing=Backing.HUGETLBFS, share=True)
    options = QemuOptions(memory=memory, free_page_reporting=True)
    with HugePagePool(RAM_BYTES // HUGE_BYTES) as huge_pages, LinuxQemu(options) as linux:
        owned = linux.guest.start(f"guestwork memory {OWNED_BYTES} 3 3600")
        owned.read_line()
        with _attach(linux) as session:
            _have_it_report(session, linux)
            _check_agreement(session)
            free = huge_pages.free()
            assert free >= ENOUGH_BYTES // HUGE_BYTES  # really given back
            linux.guest.check(f"guestwork hog {ENOUGH_BYTES}")
            touches = session.status().touches
            assert touches.violations == 0
            assert touches.granted >= ENOUGH_BYTES // HUGE_BYTES // 2
            _serve_until(session, lambda: _ballooned(session) >= ENOUGH_BYTES)
            _check_agreement(session)
        linux.guest.check("kill -TERM $(pidof guestwork | tr ' ' '\\n' | sort -n | tail -1)")
        assert "bad=0" in owned.wait().output


def test_a_limit_without_a_driver_is_attached_with_and_changed(linux: LinuxQemu) -> None:
    limited = ("--contract", "cap", "--count-reported", "--limit", RAM_BYTES >> 1)
    with attached(linux, *limited, "--policy", "observe"):
        contract = status_of(linux)["contract"]
        assert contract["count_reported"]
        assert contract["limit_bytes"] == RAM_BYTES >> 1
        assert "with what is reported free" in run("status", linux.pid).stdout
        assert run("policy", linux.pid, "--no-count-reported").returncode == 0
        assert not status_of(linux)["contract"]["count_reported"]
    refused(2, "attach", linux.pid, "--count-reported")


def test_reports_that_nobody_tells_of_are_refused(
    linux: LinuxQemu, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    terms = Terms(kind=ContractKind.CAP, count_reported=True)
    for kind in (ObserverKind.SCAN, ObserverKind.DIRECT):
        options = SessionOptions(
            pid=linux.pid, qmp_path=str(linux.qmp_path), terms=terms, observer=kind
        )
        with pytest.raises(UsageError, match="tells of no reports"):
            Session(options)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG))
    for observer in (None, ObserverKind.TRACE):
        options = SessionOptions(
            pid=qemu.pid, qmp_path=str(qemu.qmp_path), terms=terms, observer=observer
        )
        with pytest.raises(UnsupportedError, match="cannot be counted"):
            Session(options)
    qemu.guest.ping()
