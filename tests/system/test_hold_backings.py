# SPDX-License-Identifier: GPL-2.0-or-later
"""Traps that outlive their manager, in memory of files and of huge pages."""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.hoarder import Hoarder
from tests.support.holding import (
    HOLD_DIRECT,
    ask,
    detach,
    end,
    is_kept,
    serve,
    status,
    wait_until,
)
from tests.support.marks import REAL_QEMU
from tests.support.resources import becomes, resources_of, userfaultfd_mappings
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Access
from uffdballoon.session import look_at
from uffdballoon.target.backing import open_backing_file
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = REAL_QEMU

RAM_BYTES = 64 << 20
OWNED = GpaRange.of(16 << 20, 4 << 20)
BALLOON = GpaRange.of(32 << 20, 24 << 20)
SEED = 0x401D
_WRITTEN, _READ, _FILLED = 0, 1, 6  # units of the balloon
_WHILE_HELD = range(1, 5)


@dataclass(frozen=True, slots=True)
class Case:
    backing: Backing
    share: bool = True
    accel: Accel = Accel.TCG

    @property
    def unit_bytes(self) -> int:
        return HUGE_BYTES if self.backing is Backing.HUGETLBFS else PAGE_BYTES

    @property
    def granule(self) -> Granule:
        return Granule.HUGE2M if self.backing is Backing.HUGETLBFS else Granule.SMALL

    def units(self, first: int, count: int = 1) -> GpaRange:
        return GpaRange.of(BALLOON.start + first * self.unit_bytes, count * self.unit_bytes)

    def __str__(self) -> str:
        return f"{self.backing.value}-{'shared' if self.share else 'private'}-{self.accel.value}"


CASES = (
    Case(Backing.MEMFD),
    Case(Backing.TMPFS),
    pytest.param(Case(Backing.HUGETLBFS), marks=pytest.mark.takes_huge_pages),
    Case(Backing.MEMFD, share=False),
    pytest.param(Case(Backing.HUGETLBFS, share=False), marks=pytest.mark.takes_huge_pages),
    pytest.param(
        Case(Backing.HUGETLBFS, accel=Accel.KVM),
        marks=[pytest.mark.needs_kvm, pytest.mark.takes_huge_pages],
    ),
)


@dataclass(frozen=True, slots=True)
class Running:
    case: Case
    qemu: Qemu
    pool: HugePagePool | None

    def free_pages(self) -> int:
        return self.pool.free() if self.pool else 0

    def fill_by_device(self, unit: int, value: int) -> None:
        """Write a word into the file behind the guest's memory, as a vhost-user device does."""
        with Target.open(self.qemu.pid) as target:
            (ram,) = look_at(target, str(self.qemu.qmp_path))[0].blocks
        file = open_backing_file(self.qemu.pid, ram)
        try:
            at = self.case.units(unit).start + ram.hva - file.file_start
            with mmap.mmap(file.fd, RAM_BYTES) as memory:
                memory[at : at + 4] = value.to_bytes(4, "little")
        finally:
            os.close(file.fd)


@contextlib.contextmanager
def _run(case: Case, *, prealloc: bool = False) -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        pool = None
        if case.backing is Backing.HUGETLBFS:
            pool = stack.enter_context(HugePagePool(RAM_BYTES // HUGE_BYTES + 2))
        memory = Memory(
            size_bytes=RAM_BYTES, backing=case.backing, share=case.share, prealloc=prealloc
        )
        qemu = stack.enter_context(Qemu(QemuOptions(accel=case.accel, memory=memory)))
        for span in (OWNED, BALLOON):
            qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
        yield Running(case, qemu, pool)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kill_loses_no_touch_and_counts_none_twice(case: Case) -> None:
    with _run(case) as running:
        qemu, unit_bytes = running.qemu, case.unit_bytes
        before, free = resources_of(qemu.pid), running.free_pages()
        with serve(qemu, *HOLD_DIRECT) as first:
            first.inflate(BALLOON, case.granule)
            qemu.guest.write(case.units(_WRITTEN).start, 5)
            assert qemu.guest.read(case.units(_READ).start + 8) == 0
            assert status(first)["touches"]["violations"] == 2
            if running.pool and case.share:  # zeros are dropped again
                taken_pages = BALLOON.size_bytes // unit_bytes - 1
                wait_until(lambda: running.free_pages() == free + taken_pages)
            held_pages = running.free_pages()
            end(first)
        assert userfaultfd_mappings(qemu.pid) > 0
        assert is_kept(qemu)
        if case.share:
            running.fill_by_device(_FILLED, 0xD0D0)
        pending = qemu.guest.start_touch(
            case.units(_WHILE_HELD[0], len(_WHILE_HELD)), Access.WRITE, stride_bytes=unit_bytes
        )
        assert not pending.is_there(0.2)
        taken = int(bool(running.pool) and case.share)
        assert running.free_pages() == held_pages - taken
        with serve(qemu, *HOLD_DIRECT) as second:
            pending.wait()
            assert status(second)["touches"]["violations"] == len(_WHILE_HELD)
            if case.share:
                assert qemu.guest.read(case.units(_FILLED).start) == 0xD0D0
            state = status(second)
            assert state["touches"]["filled_outside"] == int(case.share)
            assert state["touches"]["violations"] == len(_WHILE_HELD) + int(case.share)
            left = BALLOON.size_bytes - (1 + len(_WHILE_HELD) + case.share) * unit_bytes
            assert state["ballooned_bytes"] == left
            assert ask(second, "verify")["disagreements"] == []
            if running.pool:
                assert running.free_pages() - free == left // unit_bytes
            detach(second)
        assert not is_kept(qemu)
        assert userfaultfd_mappings(qemu.pid) == 0
        assert becomes(qemu.pid, before)
        assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
        qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        assert running.free_pages() == free


@pytest.mark.takes_huge_pages
def test_what_waits_for_a_huge_page_waits_for_the_next_manager() -> None:
    """Taken back or ballooned, with an empty pool: the kernel's own path would be a SIGBUS."""
    case = Case(Backing.HUGETLBFS)
    with _run(case, prealloc=True) as running:
        qemu, pool = running.qemu, running.pool
        assert pool is not None
        with serve(qemu, *HOLD_DIRECT) as first:
            first.inflate(BALLOON, case.granule)
            first.deflate(case.units(0, 4), case.granule)
            end(first)
        with contextlib.closing(Hoarder(pool.free() * HUGE_BYTES)):
            with serve(qemu, *HOLD_DIRECT) as second:
                pending = qemu.guest.start_touch(
                    case.units(3, 2), Access.WRITE, stride_bytes=HUGE_BYTES
                )
                wait_until(lambda: status(second)["held"])
                (touch,) = status(second)["held"]
                assert (touch["gpa"], touch["action"]) == (case.units(3).start, "no-memory")
                end(second)
            assert not pending.is_there(0.1)
            third = serve(qemu, *HOLD_DIRECT)
            wait_until(lambda: status(third)["held"])
            assert qemu.is_running()
        with third:
            pending.wait()
            assert status(third)["touches"]["violations"] == 1
            detach(third)
        assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
