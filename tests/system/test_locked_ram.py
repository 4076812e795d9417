# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM that QEMU has locked (-overcommit mem-lock=on) is taken and trapped as any other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.command import run
from tests.support.marks import REAL_QEMU
from tests.support.resources import resident_bytes_within
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange, Hva, HvaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.ram import Backing
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = REAL_QEMU

RAM_BYTES = 64 << 20
OWNED = GpaRange.of(16 << 20, 2 << 20)
BALLOON = GpaRange.of(32 << 20, 8 << 20)
SEED = 0x10C


@pytest.fixture(
    params=[(None, False), (Backing.MEMFD, False), (Backing.MEMFD, True)],
    ids=["anon", "memfd-private", "memfd-shared"],
)
def locked(request: pytest.FixtureRequest) -> Iterator[Qemu]:
    backing, share = request.param
    memory = Memory(size_bytes=RAM_BYTES, backing=backing, share=share)
    extra = ("-overcommit", "mem-lock=on")
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory, extra=extra)) as qemu:
        for span in (OWNED, BALLOON):
            qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
        yield qemu


@pytest.mark.parametrize("granule", [Granule.SMALL, Granule.THP], ids=lambda g: g.value)
def test_locked_memory_is_freed_trapped_and_given_back(locked: Qemu, granule: Granule) -> None:
    qemu = locked
    options = SessionOptions(
        pid=qemu.pid, qmp_path=str(qemu.qmp_path), observer=ObserverKind.DIRECT
    )
    told: list[str] = []
    with Session(options, told.append) as session:
        assert any("of QEMU's memory are locked" in line for line in told)
        (block,) = session.layout.blocks
        span = HvaRange.of(Hva(block.hva + BALLOON.start), BALLOON.size_bytes)
        assert resident_bytes_within(qemu.pid, span) == BALLOON.size_bytes
        report = session.inflate(BALLOON, granule, guest_agreed=True)
        assert (report.done_bytes, report.freed_bytes) == (BALLOON.size_bytes, BALLOON.size_bytes)
        assert resident_bytes_within(qemu.pid, span) == 0
        session.settle()
        assert session.status().reclaimed_bytes == BALLOON.size_bytes
        assert session.disagreements() == []
        assert qemu.guest.read(BALLOON.start + 8) == 0
        qemu.guest.write(BALLOON.start + PAGE_BYTES, 0xBEEF)
        assert session.status().touches.violations == 2
        session.deflate(BALLOON, granule)
        qemu.guest.fill(BALLOON, SEED + 1, stride_bytes=PAGE_BYTES)
        assert session.status().touches.violations == 2
    assert qemu.guest.verify(BALLOON, SEED + 1, stride_bytes=PAGE_BYTES).bad_lines == 0
    assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_inspect_tells_of_locked_memory(locked: Qemu) -> None:
    assert "locked memory: " in run("inspect", locked.pid).stderr
    told = json.loads(run("inspect", locked.pid, "--json").stdout)
    assert told["locked_bytes"] >= RAM_BYTES
