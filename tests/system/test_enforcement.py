# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach, inflate, trap, deflate and detach on a real QEMU under KVM and under TCG."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.killing import kill_amid
from tests.support.marks import REAL_QEMU
from tests.support.resources import (
    becomes,
    resident_bytes,
    resources_of,
    userfaultfd_mappings,
)
from uffdballoon.errors import UsageError
from uffdballoon.host.procfs import read_mappings
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, Gpa, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.policy import DEFAULT_POLICY, Policy, parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.changes import StopTimes
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.records.status import TargetState
from uffdballoon.model.touch import Access, Action, Verdict
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.hugepages import HugePagePool
    from uffdballoon.lab.microguest import MicroGuest
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.ram import RamBlock

pytestmark = REAL_QEMU

OWNED = GpaRange.of(32 << 20, 2 << 20)
BALLOON = GpaRange.of(64 << 20, 8 << 20)
_KILLS = 25
"""At any moment; `make campaign` ends thousands, phase by phase."""


def _options(qemu: Qemu, policy: Policy = DEFAULT_POLICY) -> SessionOptions:
    return SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path), policy=policy)


def _pages(first: int, count: int) -> GpaRange:
    return GpaRange.of(BALLOON.start + first * PAGE_BYTES, count * PAGE_BYTES)


def test_ten_rounds_leave_the_guest_as_it_was(qemu: Qemu) -> None:
    guest = qemu.guest
    guest.fill(OWNED, 7, stride_bytes=PAGE_BYTES)
    guest.fill(BALLOON, 9, stride_bytes=PAGE_BYTES)
    checksum = guest.checksum(OWNED, stride_bytes=PAGE_BYTES)
    before = resources_of(qemu.pid)
    with Session(_options(qemu)) as session:
        session.status()
        (ram,) = session.layout.blocks
    all_before = len(read_mappings(qemu.pid))
    ram_before = _mappings_of(qemu, ram)
    for _ in range(10):
        with Session(_options(qemu)) as session:
            report = session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
            assert report.done_bytes == BALLOON.size_bytes
            assert report.left_out == ()
            assert session.disagreements() == []
            guest.touch(_pages(0, 4), Access.READ)
            guest.touch(_pages(2, 4), Access.WRITE)
            assert session.status().touches.violations == 8
            deflated = session.deflate(BALLOON, Granule.SMALL)
            assert deflated.done_bytes == BALLOON.size_bytes - 4 * PAGE_BYTES
            assert session.status().windows == 0
            assert userfaultfd_mappings(qemu.pid) == 0
        guest.ping()
        assert becomes(qemu.pid, before)
        assert _mappings_of(qemu, ram) == ram_before
        assert guest.checksum(OWNED, stride_bytes=PAGE_BYTES) == checksum
    # QEMU maps stacks and arenas of its own now and then: less than one for each round.
    assert len(read_mappings(qemu.pid)) < all_before + 10


def _mappings_of(qemu: Qemu, block: RamBlock) -> list[HvaRange]:
    spans = (mapping.span for mapping in read_mappings(qemu.pid))
    return [span for span in spans if span.overlaps(block.hva_range)]


def test_memory_of_the_balloon_is_free_on_the_host(qemu: Qemu) -> None:
    qemu.guest.fill(BALLOON, 9, stride_bytes=PAGE_BYTES)
    with Session(_options(qemu)) as session:
        (ram,) = session.layout.blocks
        before = resident_bytes(qemu.pid, ram.hva_range)
        report = session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        assert report.freed_bytes == BALLOON.size_bytes
        assert before - resident_bytes(qemu.pid, ram.hva_range) == BALLOON.size_bytes
        assert session.status().reclaimed_bytes == BALLOON.size_bytes


def test_a_violation_is_told_with_vcpu_gpa_and_access(qemu: Qemu) -> None:
    with Session(_options(qemu)) as session:
        session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        session.drain_events()
        assert qemu.guest.read(BALLOON.start + 5 * PAGE_BYTES) == 0
        qemu.guest.write(BALLOON.start + 5 * PAGE_BYTES, 0x1234)
        read, write = session.drain_events()
    for event, access, action in (
        (read, Access.READ, Action.ZERO_READ),
        (write, Access.WRITE, Action.GRANT),
    ):
        assert (event.kind, event.verdict) == (EventKind.VIOLATION, Verdict.VIOLATION)
        assert event.gpa == BALLOON.start + 5 * PAGE_BYTES
        assert (event.vcpu, event.access, event.action) == (0, access, action)


def test_a_granted_page_is_owned_again_and_keeps_what_is_written(qemu: Qemu) -> None:
    gpa = BALLOON.start + 3 * PAGE_BYTES
    with Session(_options(qemu, policy=parse_policy("observe"))) as session:
        session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        qemu.guest.write(gpa, 0xCAFE)
        qemu.guest.touch(_pages(3, 1), Access.WRITE)
        assert session.status().touches.violations == 1
        assert session.status().ballooned_bytes == BALLOON.size_bytes - PAGE_BYTES
        value = qemu.guest.read(gpa)
    assert qemu.guest.read(gpa) == value


def test_a_touch_beside_the_balloon_is_ordinary(qemu: Qemu) -> None:
    beside = GpaRange.of(BALLOON.start + 16 * PAGE_BYTES, PAGE_BYTES)
    with Session(_options(qemu)) as session:
        session.inflate(_pages(0, 8), Granule.SMALL, guest_agreed=True)
        qemu.guest.touch(beside, Access.WRITE)
        touches = session.status().touches
    assert touches.violations == 0


def test_kill_ends_the_guest_at_its_first_violation(qemu: Qemu) -> None:
    with Session(_options(qemu, policy=parse_policy("zero-read,kill"))) as session:
        session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        qemu.guest.touch(_pages(0, 4), Access.READ)
        assert qemu.is_running()
        qemu.guest.start(f"write {BALLOON.start:x} 1")
        assert qemu.wait_for_exit() == -signal.SIGKILL
        assert session.target.has_exited()
        assert session.status().state is TargetState.GONE


def test_a_killed_manager_leaves_a_guest_that_answers(qemu: Qemu) -> None:
    guest: MicroGuest = qemu.guest
    chance = random.Random(qemu.pid)  # noqa: S311 - moments, not secrets
    guest.fill(OWNED, 7, stride_bytes=PAGE_BYTES)
    checksum = guest.checksum(OWNED, stride_bytes=PAGE_BYTES)
    before = resources_of(qemu.pid)

    def attach(begins: Callable[[], object]) -> None:
        begins()
        while True:
            with Session(SessionOptions(pid=qemu.pid)):
                pass

    def take_and_give(begins: Callable[[], object]) -> None:
        with Session(SessionOptions(pid=qemu.pid)) as session:
            begins()
            while True:
                session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
                session.status()
                session.deflate(BALLOON, Granule.SMALL)

    for turn in range(_KILLS):
        work, within_s = (take_and_give, 0.02) if turn % 2 else (attach, 0.1)
        kill_amid(work, chance, within_s=within_s)
        guest.ping(timeout_s=10.0)
        guest.touch(_pages(0, 8), Access.WRITE)
        assert guest.checksum(OWNED, stride_bytes=PAGE_BYTES) == checksum
        assert becomes(qemu.pid, before)
    assert guest.checksum(OWNED, stride_bytes=PAGE_BYTES) == checksum
    assert userfaultfd_mappings(qemu.pid) == 0


@pytest.mark.parametrize("backing", [Backing.MEMFD, Backing.TMPFS])
def test_shared_memory_is_zapped_without_stopping_anything(
    backing: Backing, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    memory = Memory(size_bytes=192 << 20, backing=backing, share=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    qemu.guest.fill(OWNED, 7)
    checksum = qemu.guest.checksum(OWNED)
    qemu.guest.fill(BALLOON, 9)
    with Session(_options(qemu)) as session:
        report = session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        assert report.stopped_us == StopTimes(count=0, max=0)
        assert session.disagreements() == []
        assert qemu.guest.read(BALLOON.start) == 0
        qemu.guest.write(BALLOON.start, 5)
        assert session.status().touches.violations == 2
        session.deflate(BALLOON, Granule.SMALL)
        assert qemu.guest.read(BALLOON.start) == 5
    assert qemu.guest.checksum(OWNED) == checksum


def test_rounding_to_thp_leaves_the_edges_out_and_says_so(qemu: Qemu) -> None:
    ragged = GpaRange(Gpa(BALLOON.start - PAGE_BYTES), Gpa(BALLOON.end + PAGE_BYTES))
    with Session(_options(qemu)) as session:
        report = session.inflate(ragged, Granule.THP, guest_agreed=True)
        assert report.requested_bytes == ragged.size_bytes
        left_out = sum(piece.size for piece in report.left_out)
        assert report.done_bytes + left_out == ragged.size_bytes
        assert report.done_bytes % (2 << 20) == 0


def test_an_unprivileged_sandboxed_qemu_is_enforced_by_a_passed_userfaultfd(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(
        QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20), run_as=65534)
    )
    before = resources_of(qemu.pid)
    with Session(_options(qemu)) as session:
        assert session.uffd_method == "passed"
        session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        assert qemu.guest.read(BALLOON.start) == 0
        assert session.status().touches.violations == 1
    qemu.guest.ping()
    assert becomes(qemu.pid, before)


def test_huge_pages_of_the_balloon_return_to_the_pool(huge_pages: HugePagePool) -> None:
    memory = Memory(size_bytes=128 << 20, backing=Backing.HUGETLBFS, share=True)
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu:
        span = GpaRange.of(64 << 20, 8 << 20)
        qemu.guest.fill(OWNED, 7)
        qemu.guest.fill(span, 9, stride_bytes=PAGE_BYTES)
        checksum = qemu.guest.checksum(OWNED)
        with Session(_options(qemu)) as session:
            with pytest.raises(UsageError):
                session.inflate(span, Granule.SMALL, guest_agreed=True)
            free = huge_pages.free()
            session.inflate(span, Granule.HUGE2M, guest_agreed=True)
            assert huge_pages.free() == free + 4
            qemu.guest.write(span.start + PAGE_BYTES, 5)
            assert session.status().touches.violations == 1
            assert huge_pages.free() == free + 3
            session.deflate(span, Granule.HUGE2M)
        assert qemu.guest.read(span.start + PAGE_BYTES) == 5
        assert qemu.guest.checksum(OWNED) == checksum
