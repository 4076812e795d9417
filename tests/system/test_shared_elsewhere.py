# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared guest memory that another process maps, as vhost-user and virtiofsd do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.terms import TOLD, ContractKind, Terms
from uffdballoon.model.touch import Access, Action, Role
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.lab.hugepages import HugePagePool
    from uffdballoon.model.ram import RamBlock

pytestmark = REAL_QEMU

RAM_BYTES = 64 << 20
OWNED = GpaRange.of(16 << 20, 2 << 20)
BALLOON = GpaRange.of(32 << 20, 8 << 20)
SEED = 0x5EED

# A device in a process of its own: it maps the memory file and writes a word where it is told to.
_DEVICE = """
import mmap, sys
memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
for line in sys.stdin:
    offset, value = map(int, line.split())
    memory[offset:offset + 4] = value.to_bytes(4, "little")
    print("done", flush=True)
"""


class Device:
    """Another process that has the guest's memory mapped, and writes to it."""

    def __init__(self, pid: int, block: RamBlock) -> None:
        link = f"/proc/{pid}/map_files/{block.hva:x}-{block.hva + block.size_bytes:x}"
        fd = os.open(link, os.O_RDWR)  # here and now: a window cuts the mapping, and its link goes
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _DEVICE, str(fd), str(block.size_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[fd],
                text=True,
            )
        finally:
            os.close(fd)

    def write(self, offset_bytes: int, value: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{offset_bytes} {value}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture(
    params=[
        Backing.MEMFD,
        Backing.TMPFS,
        pytest.param(Backing.HUGETLBFS, marks=pytest.mark.takes_huge_pages),
    ],
    ids=lambda b: b.value,
)
def shared(request: pytest.FixtureRequest) -> Iterator[tuple[Qemu, Device, int]]:
    if request.param is Backing.HUGETLBFS:
        pool: HugePagePool = request.getfixturevalue("huge_pages")
        assert pool.free() > 0
    memory = Memory(size_bytes=RAM_BYTES, backing=request.param, share=True)
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu:
        qemu.guest.fill(OWNED, SEED, stride_bytes=PAGE_BYTES)
        qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        with _attach(qemu, "observe") as session:
            (block,) = session.layout.blocks
        device = Device(qemu.pid, block)
        try:
            yield qemu, device, block.page_bytes
        finally:
            device.close()


def _attach(qemu: Qemu, policy: str, terms: Terms = TOLD) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            observer=ObserverKind.DIRECT,
            policy=parse_policy(policy),
            terms=terms,
        )
    )


def _granule(unit: int) -> Granule:
    return Granule.HUGE2M if unit == HUGE_BYTES else Granule.SMALL


def test_what_another_process_filled_is_a_violation_and_keeps_its_contents(
    shared: tuple[Qemu, Device, int],
) -> None:
    qemu, device, unit = shared
    read_at, written_at = BALLOON.start, BALLOON.start + unit
    with _attach(qemu, "zero-read,observe") as session:
        session.inflate(BALLOON, _granule(unit), guest_agreed=True)
        device.write(read_at, 0xD0D0)
        device.write(written_at, 0xD1D1)
        assert session.status().touches.violations == 0
        assert qemu.guest.read(read_at) == 0xD0D0
        qemu.guest.write(written_at + 8, 0xE1E1)
        events = session.drain_events()
        assert all(isinstance(e, TouchEvent) and e.role is Role.DEVICE_WRITER for e in events)
        told = [(e.gpa, e.access, e.action, e.kind) for e in events]
        assert told == [
            (read_at, Access.READ, Action.GRANT, EventKind.VIOLATION),
            (written_at, Access.WRITE, Action.GRANT, EventKind.VIOLATION),
        ]
        state = session.status()
        assert state.touches.filled_outside == state.touches.violations == 2
        assert state.ballooned_bytes == BALLOON.size_bytes - 2 * unit
        assert session.disagreements() == []
        assert qemu.guest.read(written_at) == 0xD1D1
        assert qemu.guest.read(written_at + 8) == 0xE1E1
    assert qemu.guest.read(read_at) == 0xD0D0
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_what_another_process_filled_is_held_by_the_ladder(
    shared: tuple[Qemu, Device, int],
) -> None:
    qemu, device, unit = shared
    with _attach(qemu, "zero-read,freeze") as session:
        session.inflate(BALLOON, _granule(unit), guest_agreed=True)
        device.write(BALLOON.start, 0xD0D0)
        pending = qemu.guest.start(f"read {BALLOON.start:x}")
        while not session.held():
            assert not pending.is_there(0.01)
        assert session.release() == 1
        assert "0xd0d0" in pending.wait()
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_what_another_process_fills_of_owned_memory_is_ordinary(
    shared: tuple[Qemu, Device, int],
) -> None:
    qemu, device, unit = shared
    owned = GpaRange.of(BALLOON.start + BALLOON.size_bytes // 2, unit)
    with _attach(qemu, "freeze", Terms(kind=ContractKind.CAP, floor_bytes=0)) as session:
        session.inflate(BALLOON, _granule(unit), guest_agreed=True)
        session.deflate(owned, _granule(unit))
        device.write(owned.start, 0xD2D2)
        assert qemu.guest.read(owned.start) == 0xD2D2
        device.write(BALLOON.start, 0xD3D3)
        assert qemu.guest.read(BALLOON.start) == 0xD3D3
        touches = session.status().touches
        assert (touches.violations, touches.granted, touches.filled_outside) == (0, 1, 1)
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
