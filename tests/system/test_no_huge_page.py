# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool without huge pages: the guest waits for one, and lives."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import refused
from tests.support.hoarder import Hoarder
from tests.support.marks import REAL_QEMU
from tests.support.resources import userfaultfd_mappings
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.touch import Access, Action
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.lab.microguest import PendingAnswer
    from uffdballoon.model.records.status import Held

pytestmark = [*REAL_QEMU, pytest.mark.takes_huge_pages]

RAM_BYTES = 64 << 20
OWNED = GpaRange.of(16 << 20, 2 << 20)
BALLOON = GpaRange.of(32 << 20, 4 << 20)
SEED = 0x900
_PATIENCE_S = 30.0


@pytest.fixture(params=[Accel.TCG, Accel.KVM], ids=lambda accel: accel.value)
def guest(request: pytest.FixtureRequest, pool: HugePagePool) -> Iterator[Qemu]:
    assert pool.free() >= RAM_BYTES // HUGE_BYTES
    memory = Memory(size_bytes=RAM_BYTES, backing=Backing.HUGETLBFS, share=True, prealloc=True)
    with Qemu(QemuOptions(accel=request.param, memory=memory)) as qemu:
        qemu.guest.fill(OWNED, SEED, stride_bytes=PAGE_BYTES)
        qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        yield qemu


@pytest.fixture
def pool() -> Iterator[HugePagePool]:
    with HugePagePool(RAM_BYTES // HUGE_BYTES) as pool:
        yield pool


def _attach(qemu: Qemu, policy: str, memory_patience_ns: int = 0) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            observer=ObserverKind.DIRECT,
            policy=parse_policy(policy),
            memory_patience_ns=memory_patience_ns,
        )
    )


def _wait_until_held(session: Session, pending: PendingAnswer) -> Held:
    deadline = time.monotonic() + _PATIENCE_S
    while not (held := session.held()):
        assert not pending.is_there(0.01)
        assert time.monotonic() < deadline
    (touch,) = held
    return touch


def _wait_until_free(pool: HugePagePool, pages: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while pool.free() != pages:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _check_after(qemu: Qemu) -> None:
    assert userfaultfd_mappings(qemu.pid) == 0
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


@pytest.mark.parametrize("command", ["write", "read"])
def test_a_touch_waits_for_a_huge_page_and_goes_on(
    command: str, guest: Qemu, pool: HugePagePool
) -> None:
    free = pool.free()
    words = f"{BALLOON.start + 8:x}" + (" cafe" if command == "write" else "")
    with _attach(guest, "zero-read,observe") as session:
        session.inflate(BALLOON, Granule.HUGE2M, guest_agreed=True)
        assert pool.free() - free == BALLOON.size_bytes // HUGE_BYTES
        with contextlib.closing(Hoarder(BALLOON.size_bytes)):
            assert pool.free() == free
            pending = guest.guest.start(f"{command} {words}")
            assert _wait_until_held(session, pending).action is Action.NO_MEMORY
            assert not pending.is_there(0.2)
            (told,) = [e for e in session.drain_events() if e.kind is EventKind.NO_MEMORY]
            assert (told.gpa, told.access) == (BALLOON.start, Access(command))
            assert session.status().ballooned_bytes == BALLOON.size_bytes
            assert guest.is_running()
        pending.wait()
        assert session.held() == []
        assert session.status().touches.violations == 1
        assert session.status().actions[Action.NO_MEMORY] == 1
        taken_pages = int(command == "write")  # zeros for a reader are dropped again
        _wait_until_free(pool, free + BALLOON.size_bytes // HUGE_BYTES - taken_pages)
        session.deflate(BALLOON, Granule.HUGE2M)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        assert pool.free() == free
    _check_after(guest)
    assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_what_was_deflated_waits_for_a_huge_page(guest: Qemu, pool: HugePagePool) -> None:
    free = pool.free()
    with _attach(guest, "freeze") as session:
        session.inflate(BALLOON, Granule.HUGE2M, guest_agreed=True)
        session.deflate(BALLOON, Granule.HUGE2M)
        session.settle()
        with contextlib.closing(Hoarder(BALLOON.size_bytes)):
            pending = guest.guest.start(f"write {BALLOON.start:x} cafe")
            assert _wait_until_held(session, pending).action is Action.NO_MEMORY
            session.settle()
            assert not pending.is_there(0.2)
        pending.wait()
        assert session.status().touches.violations == 0
        assert guest.guest.read(BALLOON.start) == 0xCAFE
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        session.settle()
        assert session.status().windows == 0
        assert pool.free() == free
    _check_after(guest)


def test_a_pool_that_shrank_is_waited_for(guest: Qemu, pool: HugePagePool) -> None:
    with _attach(guest, "observe") as session:
        session.inflate(BALLOON, Granule.HUGE2M, guest_agreed=True)
        with pool.lowered(BALLOON.size_bytes // HUGE_BYTES):
            pending = guest.guest.start(f"write {BALLOON.start:x} cafe")
            assert _wait_until_held(session, pending).action is Action.NO_MEMORY
        pending.wait()
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
    _check_after(guest)


def test_a_guest_may_be_ended_when_it_waited_for_too_long(guest: Qemu, pool: HugePagePool) -> None:
    free = pool.free()
    with _attach(guest, "freeze", memory_patience_ns=200_000_000) as session:
        session.inflate(BALLOON, Granule.HUGE2M, guest_agreed=True)
        session.deflate(BALLOON, Granule.HUGE2M)
        with contextlib.closing(Hoarder(BALLOON.size_bytes)):
            guest.guest.start(f"write {BALLOON.start:x} cafe")
            assert guest.wait_for_exit(_PATIENCE_S) == -signal.SIGKILL
            told = [(e.kind, e.action) for e in session.drain_events()]
        assert told == [
            (EventKind.NO_MEMORY, Action.NO_MEMORY),
            (EventKind.ORDINARY, Action.KILL),
        ]
    assert pool.free() == free + RAM_BYTES // HUGE_BYTES
    assert refused(2, "attach", guest.pid, "--on-no-memory", "wait=3s")
