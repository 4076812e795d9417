# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads of a balloon in a file cost no memory, though zeros are pages of their own there."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from tests.support.resources import resident_bytes_within
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Access, Action
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.backing import open_backing_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.addresses import HvaRange

pytestmark = REAL_QEMU

RAM_BYTES = 128 << 20
OWNED = (GpaRange.of(30 << 20, 2 << 20), GpaRange.of(96 << 20, 2 << 20))  # around the balloon
BALLOON = GpaRange.of(32 << 20, 64 << 20)
SEED = 0x2E05
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Case:
    backing: Backing
    accel: Accel = Accel.TCG
    share: bool = True

    @property
    def unit_bytes(self) -> int:
        return HUGE_BYTES if self.backing is Backing.HUGETLBFS else PAGE_BYTES

    @property
    def granule(self) -> Granule:
        return Granule.HUGE2M if self.backing is Backing.HUGETLBFS else Granule.SMALL

    def __str__(self) -> str:
        return f"{self.backing.value}-{'shared' if self.share else 'private'}-{self.accel.value}"


CASES = (
    Case(Backing.MEMFD),
    Case(Backing.TMPFS),
    Case(Backing.SHMEM),
    Case(Backing.MEMFD, share=False),
    Case(Backing.TMPFS, share=False),
    pytest.param(Case(Backing.MEMFD, Accel.KVM), marks=pytest.mark.needs_kvm),
    pytest.param(Case(Backing.HUGETLBFS), marks=pytest.mark.takes_huge_pages),
    pytest.param(Case(Backing.HUGETLBFS, share=False), marks=pytest.mark.takes_huge_pages),
)


@dataclass(frozen=True, slots=True)
class Ballooned:
    case: Case
    qemu: Qemu
    session: Session
    ram: HvaRange
    fd: int

    def held_bytes(self) -> int:
        """Return what the host has given for all of RAM."""
        if self.case.share:
            return os.fstat(self.fd).st_blocks * 512
        return resident_bytes_within(self.qemu.pid, self.ram)

    def wait_until_it_holds(self, size_bytes: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self.held_bytes() != size_bytes:
            assert time.monotonic() < deadline, f"{self.held_bytes() - size_bytes} bytes too many"
            self.session.keep_up()
            time.sleep(0.01)


@contextlib.contextmanager
def _run(case: Case, policy: str) -> Iterator[Ballooned]:
    """Run a guest that has written to all of its balloon, and to what is around it, and inflate."""
    with contextlib.ExitStack() as stack:
        if case.backing is Backing.HUGETLBFS:
            stack.enter_context(HugePagePool(RAM_BYTES // HUGE_BYTES + 2))
        memory = Memory(size_bytes=RAM_BYTES, backing=case.backing, share=case.share, prealloc=True)
        qemu = stack.enter_context(Qemu(QemuOptions(accel=case.accel, memory=memory)))
        for span in (*OWNED, BALLOON):
            qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
        options = SessionOptions(
            pid=qemu.pid, qmp_path=str(qemu.qmp_path), policy=parse_policy(policy)
        )
        session = stack.enter_context(Session(options))
        (block,) = session.layout.blocks
        file = open_backing_file(qemu.pid, block)
        stack.callback(os.close, file.fd)
        session.inflate(BALLOON, case.granule, guest_agreed=True)
        yield Ballooned(case, qemu, session, block.hva_range, file.fd)
        for span in OWNED:
            assert qemu.guest.verify(span, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_guest_that_reads_its_whole_balloon_takes_nothing_back(case: Case) -> None:
    with _run(case, "zero-read,kill") as running:
        session, guest = running.session, running.qemu.guest
        before_bytes = running.held_bytes()
        guest.touch(BALLOON, Access.READ, stride_bytes=case.unit_bytes)
        running.wait_until_it_holds(before_bytes)
        state = session.status()
        assert state.ballooned_bytes == state.reclaimed_bytes == BALLOON.size_bytes
        assert state.touches.violations >= BALLOON.size_bytes // case.unit_bytes
        assert state.answers.failed == 0
        assert session.verify().disagreements == ()
        assert running.qemu.is_running()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_write_after_zeros_were_dropped_is_a_violation_and_kept(case: Case) -> None:
    with _run(case, "zero-read,observe") as running:
        session, guest, unit_bytes = running.session, running.qemu.guest, case.unit_bytes
        before_bytes = running.held_bytes()
        assert guest.read(BALLOON.start + 8) == 0
        running.wait_until_it_holds(before_bytes)
        guest.write(BALLOON.start + 8, 0xCAFE)
        actions = session.status().actions
        assert (actions[Action.ZERO_READ], actions[Action.GRANT]) == (1, 1)
        assert guest.read(BALLOON.start + unit_bytes) == 0
        running.wait_until_it_holds(before_bytes + unit_bytes)
        assert guest.read(BALLOON.start + 8) == 0xCAFE
        left_bytes = BALLOON.size_bytes - unit_bytes
        assert session.status().ballooned_bytes == session.status().reclaimed_bytes == left_bytes


def test_the_monitor_reads_a_balloon_without_the_host_paying_for_it() -> None:
    with _run(Case(Backing.MEMFD), "zero-read,kill") as running:
        before_bytes = running.held_bytes()
        running.qemu.monitor.execute(
            "pmemsave", val=BALLOON.start, size=BALLOON.size_bytes, filename="/dev/null"
        )
        assert running.held_bytes() - before_bytes < 1 << 20
        running.wait_until_it_holds(before_bytes)
        state = running.session.status()
        assert state.touches.violations == 0
        assert state.touches.host_reads == BALLOON.size_bytes // PAGE_BYTES
        assert state.reclaimed_bytes == BALLOON.size_bytes
