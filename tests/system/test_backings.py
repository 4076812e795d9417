# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of guest memory, by the operator and by the guest's own balloon."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from tests.support.prerequisites import demand
from tests.support.resources import resident_bytes_within, resources_of, userfaultfd_mappings
from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange, Hva, HvaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import DEFAULT_POLICY, parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Access, Action
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.backing import open_backing_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.model.ram import RamBlock
    from uffdballoon.target.backing import BackingFile

pytestmark = REAL_QEMU

RAM_BYTES = 64 << 20
POOL_PAGES = RAM_BYTES // HUGE_BYTES + 2
OWNED = GpaRange.of(16 << 20, 2 << 20)
BALLOON = GpaRange.of(32 << 20, 8 << 20)
SEED = 0xBAC
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    memory: Memory
    accel: Accel = Accel.TCG
    mounts: bool = False

    @property
    def is_huge(self) -> bool:
        return self.memory.backing is Backing.HUGETLBFS

    @property
    def granules(self) -> tuple[Granule, ...]:
        return (Granule.HUGE2M,) if self.is_huge else (Granule.SMALL, Granule.THP)


def _memory(backing: Backing | None, *, share: bool = False, prealloc: bool = False) -> Memory:
    return Memory(size_bytes=RAM_BYTES, backing=backing, share=share, prealloc=prealloc)


CASES = (
    Case("m-alone", _memory(None)),
    Case("m-alone-kvm", _memory(None), Accel.KVM),
    Case("ram", _memory(Backing.ANON)),
    Case("ram-shared", _memory(Backing.SHMEM, share=True)),
    Case("ram-shared-prealloc-kvm", _memory(Backing.SHMEM, share=True, prealloc=True), Accel.KVM),
    Case("ram-prealloc", _memory(Backing.ANON, prealloc=True)),
    Case("memfd-private", _memory(Backing.MEMFD)),
    Case("memfd-private-prealloc", _memory(Backing.MEMFD, prealloc=True)),
    Case("memfd-shared", _memory(Backing.MEMFD, share=True)),
    Case("memfd-shared-prealloc-kvm", _memory(Backing.MEMFD, share=True, prealloc=True), Accel.KVM),
    Case("tmpfs-private", _memory(Backing.TMPFS)),
    Case("tmpfs-shared", _memory(Backing.TMPFS, share=True)),
    Case("tmpfs-shared-prealloc", _memory(Backing.TMPFS, share=True, prealloc=True)),
    Case("huge-memfd-private", _memory(Backing.HUGETLBFS)),
    Case("huge-memfd-shared", _memory(Backing.HUGETLBFS, share=True)),
    Case("huge-memfd-shared-kvm", _memory(Backing.HUGETLBFS, share=True), Accel.KVM),
    Case("huge-mount-private", _memory(Backing.HUGETLBFS, prealloc=True), mounts=True),
    Case("huge-mount-shared", _memory(Backing.HUGETLBFS, share=True, prealloc=True), mounts=True),
)


@dataclass(frozen=True, slots=True)
class Running:
    case: Case
    qemu: Qemu
    pool: HugePagePool | None


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    return [pytest.mark.takes_huge_pages] if case.is_huge else []


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id=case.name, marks=_marks(case)) for case in CASES],
)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    case: Case = request.param
    if case.accel is Accel.KVM:
        demand("needs_kvm")
    with contextlib.ExitStack() as stack:
        memory, pool = case.memory, None
        if case.is_huge:
            pool = stack.enter_context(HugePagePool(POOL_PAGES))
        if case.mounts:
            directory = stack.enter_context(HOST.hugetlbfs(tmp_path_factory.mktemp("huge")))
            memory = replace(memory, mem_path=str(directory))
        qemu = stack.enter_context(Qemu(QemuOptions(accel=case.accel, memory=memory)))
        qemu.guest.fill(OWNED, SEED, stride_bytes=PAGE_BYTES)
        yield Running(case, qemu, pool)


def _attach(qemu: Qemu, policy: str = str(DEFAULT_POLICY)) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            observer=ObserverKind.TRACE,
            policy=parse_policy(policy),
        )
    )


def _wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until it is so: QEMU closes a monitor that hung up in its own time, for one."""
    deadline = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class _Gauge:
    """What the host has given for the balloon, in page tables, file and pool."""

    def __init__(self, running: Running, block: RamBlock) -> None:
        self._qemu, self._pool, self._block = running.qemu, running.pool, block
        self._span = HvaRange.of(Hva(block.hva + BALLOON.start), BALLOON.size_bytes)
        self._file_before, self._free_before = self._file_bytes(), self._free_bytes()

    def mapped_bytes(self) -> int:
        return resident_bytes_within(self._qemu.pid, self._span)

    def file_fell_bytes(self) -> int:
        return self._file_before - self._file_bytes()

    def file_has_data(self) -> bool:
        """Tell whether the file has a page in the balloon's range; hugetlbfs does not say."""
        if self._block.backing is Backing.ANON:
            return False
        with self._file() as file:
            start = self._span.start - file.file_start
            try:
                return os.lseek(file.fd, start, os.SEEK_DATA) < start + self._span.size_bytes
            except OSError as error:
                if error.errno == errno.ENXIO:  # none until the end
                    return False
                raise

    def pool_rose_bytes(self) -> int:
        return self._free_bytes() - self._free_before

    def _file_bytes(self) -> int:
        if self._block.backing is Backing.ANON:
            return 0
        with self._file() as file:
            return os.fstat(file.fd).st_blocks * 512

    @contextlib.contextmanager
    def _file(self) -> Iterator[BackingFile]:
        file = open_backing_file(self._qemu.pid, self._block)
        try:
            yield file
        finally:
            os.close(file.fd)

    def _free_bytes(self) -> int:
        return self._pool.free() * HUGE_BYTES if self._pool else 0


def _check_that_it_is_gone(gauge: _Gauge, case: Case, block: RamBlock) -> None:
    assert gauge.mapped_bytes() == 0
    if case.is_huge:
        assert gauge.pool_rose_bytes() == BALLOON.size_bytes
    if block.shared:
        assert gauge.file_fell_bytes() == BALLOON.size_bytes
    if not case.is_huge:
        # A private mapping has a page of the file under each page that it has written to.
        assert not gauge.file_has_data()


def test_the_operators_balloon_is_gone_trapped_and_given_back(running: Running) -> None:
    qemu, guest, case = running.qemu, running.qemu.guest, running.case
    before = resources_of(qemu.pid)
    for granule in case.granules:
        guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        unit = HUGE_BYTES if case.is_huge else PAGE_BYTES
        first, second = BALLOON.start, BALLOON.start + unit
        with _attach(qemu) as session:
            (block,) = session.layout.blocks
            gauge = _Gauge(running, block)
            report = session.inflate(BALLOON, granule, guest_agreed=True)
            assert (report.done_bytes, report.left_out) == (BALLOON.size_bytes, ())
            assert session.disagreements() == []
            _check_that_it_is_gone(gauge, case, block)
            session.drain_events()
            assert guest.read(first + 8) == 0
            guest.write(first + 8, 0xCAFE)
            guest.write(second + 8, 0xBEEF)
            told = [(e.gpa, e.access, e.action) for e in session.drain_events()]
            assert told == [
                (first, Access.READ, Action.ZERO_READ),
                (first, Access.WRITE, Action.GRANT),
                (second, Access.WRITE, Action.GRANT),
            ]
            assert guest.read(first + 8) == 0xCAFE
            assert guest.read(second + 8) == 0xBEEF
            given = session.deflate(BALLOON, granule)
            assert given.done_bytes == BALLOON.size_bytes - 2 * unit
            guest.fill(BALLOON, SEED + 1, stride_bytes=PAGE_BYTES)
            session.settle()
            state = session.status()
            assert state.touches.violations == 3
            assert state.ballooned_bytes == state.windows == state.answers.failed == 0
            assert gauge.mapped_bytes() == BALLOON.size_bytes
        assert userfaultfd_mappings(qemu.pid) == 0
        _wait_for(lambda: resources_of(qemu.pid) == before)
        assert guest.verify(BALLOON, SEED + 1, stride_bytes=PAGE_BYTES).bad_lines == 0
        assert guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_the_guests_own_balloon_is_followed_trapped_and_given_back(running: Running) -> None:
    qemu, guest, case = running.qemu, running.qemu.guest, running.case
    before = resources_of(qemu.pid)
    unit = HUGE_BYTES if case.is_huge else PAGE_BYTES
    guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
    with _attach(qemu, "observe") as session:
        (block,) = session.layout.blocks
        gauge = _Gauge(running, block)
        # A buffer for each huge page: QEMU forgets pieces that came in another (7.2,
        # virtio_balloon_handle_output), so that Linux's driver, 256 at a time, frees none.
        guest.balloon_inflate(BALLOON, together=HUGE_BYTES // PAGE_BYTES)
        session.settle()
        state = session.status()
        assert state.ballooned_bytes == BALLOON.size_bytes
        assert state.balloon.unaccounted_bytes == 0
        assert session.verify().disagreements == ()
        _check_that_it_is_gone(gauge, case, block)
        guest.touch(GpaRange.of(BALLOON.start, 3 * unit), Access.WRITE, stride_bytes=unit)
        session.drain_events()
        assert session.status().touches.violations == 3
        guest.balloon_deflate(BALLOON)
        guest.fill(BALLOON, SEED + 1, stride_bytes=PAGE_BYTES)
        session.settle()
        state = session.status()
        assert state.touches.violations == 3
        assert state.ballooned_bytes == state.windows == state.answers.failed == 0
    assert userfaultfd_mappings(qemu.pid) == 0
    _wait_for(lambda: resources_of(qemu.pid) == before)
    assert guest.verify(BALLOON, SEED + 1, stride_bytes=PAGE_BYTES).bad_lines == 0
    assert guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_the_granule_thp_splits_no_huge_page_of_owned_memory() -> None:
    ragged = GpaRange.of(BALLOON.start + PAGE_BYTES, BALLOON.size_bytes)
    whole_of_it = GpaRange.of(16 << 20, 40 << 20)
    with Qemu(QemuOptions(accel=Accel.TCG, memory=_memory(None))) as qemu:
        qemu.guest.fill(whole_of_it, SEED, stride_bytes=PAGE_BYTES)
        before = huge_bytes(qemu.pid)
        assert before >= whole_of_it.size_bytes
        with _attach(qemu) as session:
            report = session.inflate(ragged, Granule.THP, guest_agreed=True)
            assert report.done_bytes == BALLOON.size_bytes - HUGE_BYTES
            session.settle()
            assert before - huge_bytes(qemu.pid) == report.done_bytes
            session.deflate(ragged, Granule.THP)
        qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        assert qemu.guest.verify(whole_of_it, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
