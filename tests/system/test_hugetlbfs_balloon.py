# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages that a guest's driver gives up in pieces of 4 KiB go back to the pool."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, refused, run, status_of
from tests.support.hoarder import Hoarder
from tests.support.life import working
from tests.support.marks import REAL_QEMU
from tests.support.resources import userfaultfd_mappings
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.records.events import Event, EventKind
from uffdballoon.model.terms import TOLD, ContractKind, Terms
from uffdballoon.model.touch import Access, Action
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [*REAL_QEMU, pytest.mark.takes_huge_pages]

RAM_BYTES = 64 << 20
OWNED = GpaRange.of(16 << 20, 2 << 20)
BALLOON = GpaRange.of(32 << 20, 8 << 20)
BLOCKS = BALLOON.size_bytes // HUGE_BYTES
BALLOON_PAGES = BALLOON.size_bytes // PAGE_BYTES
KEPT_PAGES = 256
SEED = 0xB19
CAP = Terms(kind=ContractKind.CAP, floor_bytes=0)
_TOGETHER = 64 * PAGE_BYTES
_PATIENCE_S = 60.0

LINUX_BYTES = 512 << 20
GIVEN_BYTES = 256 << 20
CYCLES = 3


def attach(qemu: Qemu | LinuxQemu, terms: Terms = TOLD) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            policy=parse_policy("observe"),
            terms=terms,
        )
    )


def wait_until(holds: Callable[[], object], meanwhile: Callable[[], object] | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        if meanwhile is not None:
            meanwhile()
        time.sleep(0.02)


@pytest.fixture
def pool() -> Iterator[HugePagePool]:
    with HugePagePool(RAM_BYTES // HUGE_BYTES) as pool:
        yield pool


@pytest.fixture(params=[Accel.KVM, Accel.TCG], ids=lambda accel: accel.value)
def guest(request: pytest.FixtureRequest, pool: HugePagePool) -> Iterator[Qemu]:
    assert pool.free() >= RAM_BYTES // HUGE_BYTES
    memory = Memory(size_bytes=RAM_BYTES, backing=Backing.HUGETLBFS, share=True, prealloc=True)
    with Qemu(QemuOptions(accel=request.param, memory=memory)) as qemu:
        for span in (OWNED, BALLOON):
            qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
        yield qemu


def give_scattered(qemu: Qemu, span: GpaRange) -> None:
    """Give all of it up, in stretches of some pages and in no order."""
    pieces = span.size_bytes // _TOGETHER
    for i in range(pieces):
        start = span.start + i * 37 % pieces * _TOGETHER  # no number of pieces here has that factor
        qemu.guest.balloon_inflate(GpaRange.of(start, _TOGETHER))


def check_owned(qemu: Qemu) -> None:
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


@pytest.mark.parametrize("terms", [TOLD, CAP], ids=["told", "cap"])
def test_whole_blocks_go_back_to_the_pool_and_are_trapped(
    terms: Terms, guest: Qemu, pool: HugePagePool
) -> None:
    free = pool.free()
    last = GpaRange.of(BALLOON.end - PAGE_BYTES, PAGE_BYTES)
    with attach(guest, terms) as session:
        assert session.status().observer is ObserverKind.MONITOR
        give_scattered(guest, GpaRange.of(BALLOON.start, BALLOON.size_bytes - _TOGETHER))
        guest.guest.balloon_inflate(GpaRange.of(BALLOON.end - _TOGETHER, _TOGETHER - PAGE_BYTES))
        wait_until(lambda: pool.free() == free + BLOCKS - 1, session.settle)
        pieces_bytes = HUGE_BYTES - PAGE_BYTES
        wait_until(lambda: session.status().observed.pieces_bytes == pieces_bytes, session.settle)
        state = session.status()
        assert state.ballooned_bytes == BALLOON.size_bytes - HUGE_BYTES
        assert state.balloon.unaccounted_bytes == 0
        guest.guest.balloon_inflate(last)
        wait_until(lambda: pool.free() == free + BLOCKS, session.settle)
        assert session.status().ballooned_bytes == BALLOON.size_bytes
        assert session.verify().disagreements == ()
        touched = GpaRange.of(BALLOON.start, 2 * HUGE_BYTES)
        guest.guest.touch(touched, Access.WRITE)
        session.settle()
        touches = session.status().touches
        assert (touches.violations, touches.granted) == ((2, 0) if terms is TOLD else (0, 2))
        assert pool.free() == free + BLOCKS - 2
        guest.guest.balloon_deflate(BALLOON)
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        session.settle()
        state = session.status()
        assert state.touches.violations == touches.violations
        assert state.ballooned_bytes == state.observed.pieces_bytes == state.windows == 0
        assert state.balloon.unaccounted_bytes == 0
    assert pool.free() == free
    assert userfaultfd_mappings(guest.pid) == 0
    check_owned(guest)
    assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_what_is_taken_back_is_zeros_and_only_that_costs_a_page(
    guest: Qemu, pool: HugePagePool
) -> None:
    free = pool.free()
    with attach(guest) as session:
        give_scattered(guest, BALLOON)
        wait_until(lambda: pool.free() == free + BLOCKS, session.settle)
        back = GpaRange.of(BALLOON.start + 5 * PAGE_BYTES, PAGE_BYTES)
        guest.guest.balloon_deflate(back)
        session.settle()
        assert session.status().ballooned_bytes == BALLOON.size_bytes - HUGE_BYTES
        assert guest.guest.read(back.start) == 0
        session.settle()
        assert pool.free() == free + BLOCKS - 1
        guest.guest.write(back.start, 0xCAFE)
        guest.guest.balloon_inflate(back)
        wait_until(lambda: pool.free() == free + BLOCKS, session.settle)
        guest.guest.balloon_deflate(BALLOON)
        for gpa in range(BALLOON.start, BALLOON.end, PAGE_BYTES * 16):
            assert guest.guest.read(gpa) == 0
        assert session.status().touches.violations == 0
    assert pool.free() == free
    check_owned(guest)


def test_with_an_empty_pool_the_guest_waits_and_goes_on(guest: Qemu, pool: HugePagePool) -> None:
    free = pool.free()
    with attach(guest) as session:
        give_scattered(guest, BALLOON)
        wait_until(lambda: pool.free() == free + BLOCKS, session.settle)
        guest.guest.balloon_deflate(BALLOON)
        session.settle()
        with contextlib.closing(Hoarder(BALLOON.size_bytes)):
            assert pool.free() == free
            pending = guest.guest.start(f"write {BALLOON.start + 8:x} cafe")
            wait_until(session.held, lambda: pending.is_there(0.01))
            (held,) = session.held()
            assert held.action is Action.NO_MEMORY
            assert not pending.is_there(0.2)
            assert guest.is_running()
        pending.wait()
        assert guest.guest.read(BALLOON.start + 8) == 0xCAFE
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        session.settle()
        assert session.status().touches.violations == session.status().windows == 0
    assert pool.free() == free
    check_owned(guest)


def test_a_guest_that_moves_its_balloon_without_rest_keeps_what_it_owns(
    guest: Qemu, pool: HugePagePool
) -> None:
    """Pieces are taken back, written to and given again while their blocks are being punched."""
    free = pool.free()
    with attached(guest, "--qmp", guest.qmp_path):
        for i in range(40):
            guest.guest.balloon_inflate(BALLOON)
            start = BALLOON.start + i * 613 % (BALLOON_PAGES - KEPT_PAGES) * PAGE_BYTES
            kept = GpaRange.of(start, KEPT_PAGES * PAGE_BYTES)
            guest.guest.balloon_deflate(kept)
            guest.guest.fill(kept, start, stride_bytes=PAGE_BYTES)
            assert guest.guest.verify(kept, start, stride_bytes=PAGE_BYTES).bad_lines == 0
            for rest in (GpaRange(BALLOON.start, kept.start), GpaRange(kept.end, BALLOON.end)):
                if rest.size_bytes:
                    guest.guest.balloon_deflate(rest)
            assert guest.guest.verify(kept, start, stride_bytes=PAGE_BYTES).bad_lines == 0
        guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        assert status_of(guest)["touches"]["violations"] == 0
        assert run("detach", guest.pid).returncode == 0
    assert pool.free() == free
    check_owned(guest)
    assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


@pytest.mark.parametrize("accel", [Accel.KVM, Accel.TCG], ids=lambda accel: accel.value)
def test_a_reset_empties_it_and_what_is_written_then_is_kept(
    accel: Accel, pool: HugePagePool
) -> None:
    memory = Memory(size_bytes=RAM_BYTES, backing=Backing.HUGETLBFS, share=True, prealloc=True)
    with Qemu(QemuOptions(accel=accel, memory=memory, seabios=True)) as qemu:
        qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        free = pool.free()
        told: list[Event] = []
        with attach(qemu) as session:
            give_scattered(qemu, BALLOON)
            wait_until(lambda: pool.free() == free + BLOCKS, session.settle)
            qemu.guest.reset()
            wait_until(
                lambda: any(event.kind is EventKind.RESET for event in told),
                lambda: told.extend(session.settle()),
            )
            assert session.status().ballooned_bytes == session.status().observed.pieces_bytes == 0
            qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
            qemu.guest.balloon_inflate(OWNED)
            wait_until(lambda: pool.free() == free + 1, session.settle)
            assert session.status().ballooned_bytes == OWNED.size_bytes
            assert session.status().touches.violations == 0
        assert qemu.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_a_manager_that_is_killed_leaves_a_guest_that_the_next_one_follows(
    guest: Qemu, pool: HugePagePool
) -> None:
    free = pool.free()
    by_monitor = ("--qmp", guest.qmp_path, "--observer", "monitor")
    with attached(guest, *by_monitor) as manager:
        give_scattered(guest, BALLOON)
        wait_until(lambda: pool.free() == free + BLOCKS)
        manager.kill()
        manager.wait(_PATIENCE_S)
    guest.guest.balloon_deflate(BALLOON)
    guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
    assert pool.free() == free
    assert userfaultfd_mappings(guest.pid) == 0
    with attached(guest, *by_monitor):
        assert guest.guest.verify(BALLOON, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
        give_scattered(guest, BALLOON)
        wait_until(lambda: pool.free() == free + BLOCKS)
        assert run("verify", guest.pid).returncode == 0
        assert run("detach", guest.pid).returncode == 0
    guest.guest.balloon_deflate(BALLOON)
    guest.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
    assert pool.free() == free
    check_owned(guest)


def test_private_huge_pages_are_refused_and_why(pool: HugePagePool) -> None:
    assert pool.free() > 0
    memory = Memory(size_bytes=RAM_BYTES, backing=Backing.HUGETLBFS, share=False)
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu:
        said = refused(4, "attach", qemu.pid, "--qmp", qemu.qmp_path, "--observer", "monitor")
        assert "privately" in said
        qemu.guest.ping()


@pytest.fixture
def linux() -> Iterator[tuple[LinuxQemu, HugePagePool]]:
    memory = Memory(size_bytes=LINUX_BYTES, backing=Backing.HUGETLBFS, share=True, prealloc=True)
    with (
        HugePagePool(LINUX_BYTES // HUGE_BYTES) as pool,
        LinuxQemu(QemuOptions(memory=memory)) as qemu,
    ):
        yield qemu, pool


def reach(session: Session, left_bytes: int) -> None:
    session.ask_balloon(left_bytes)
    wait_until(lambda: session.balloon_progress().state is ProgressState.REACHED, session.settle)


@pytest.mark.needs_linux_guest
def test_a_linux_guest_returns_huge_pages_where_qemu_alone_returns_none(
    linux: tuple[LinuxQemu, HugePagePool],
) -> None:
    qemu, pool = linux
    free = pool.free()
    least = GIVEN_BYTES // HUGE_BYTES * 9 // 10
    for left_bytes in (LINUX_BYTES - GIVEN_BYTES, LINUX_BYTES):
        qemu.monitor.execute("balloon", value=left_bytes)
        wait_until(lambda: qemu.monitor.balloon_bytes() == left_bytes)  # noqa: B023
        assert pool.free() == free
    with attach(qemu) as session, working(qemu):
        for _ in range(CYCLES):
            reach(session, LINUX_BYTES - GIVEN_BYTES)
            wait_until(lambda: pool.free() >= free + least, session.settle)
            state = session.status()
            assert state.ballooned_bytes == (pool.free() - free) * HUGE_BYTES
            assert state.ballooned_bytes + state.observed.pieces_bytes == GIVEN_BYTES
            assert state.balloon.unaccounted_bytes == 0
            assert session.verify().disagreements == ()
            reach(session, LINUX_BYTES)
            state = session.status()
            assert state.ballooned_bytes == state.observed.pieces_bytes == 0
            assert state.touches.violations == 0
    assert qemu.guest.check("echo alive") == "alive\n"


@pytest.mark.needs_linux_guest
def test_blocks_that_are_reported_free_are_none_of_the_balloon() -> None:
    memory = Memory(size_bytes=LINUX_BYTES, backing=Backing.HUGETLBFS, share=True)
    options = QemuOptions(memory=memory, free_page_reporting=True)
    with HugePagePool(LINUX_BYTES // HUGE_BYTES) as pool, LinuxQemu(options) as qemu:
        with attach(qemu) as session, working(qemu):
            reach(session, LINUX_BYTES - GIVEN_BYTES)
            wait_until(
                lambda: session.status().ballooned_bytes >= GIVEN_BYTES * 9 // 10, session.settle
            )
            state = session.status()
            assert state.ballooned_bytes + state.observed.pieces_bytes == GIVEN_BYTES
            assert state.balloon.unaccounted_bytes == 0
            assert pool.free() * HUGE_BYTES >= state.ballooned_bytes
            reach(session, LINUX_BYTES)
            work = qemu.guest.check(f"guestwork memory {GIVEN_BYTES} 5 0")
            assert "bad=0" in work
            session.settle()
            state = session.status()
            assert state.ballooned_bytes == state.touches.violations == 0
        assert qemu.guest.check("echo alive") == "alive\n"
