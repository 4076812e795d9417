# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest that breaks contracts does what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.resources import resident_bytes
from uffdballoon.attach.target import Target
from uffdballoon.errors import LabError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access
from uffdballoon.session import look_at

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_qemu]

SPAN = GpaRange.of(64 << 20, 1 << 20)
RECORD = 96 << 20
PAGES = SPAN.size_bytes // PAGE_BYTES


def test_it_reads_writes_fills_and_verifies(qemu: Qemu) -> None:
    guest = qemu.guest
    guest.write(SPAN.start, 0xC0FFEE)
    assert guest.read(SPAN.start) == 0xC0FFEE
    guest.fill(SPAN, 5)
    before = guest.checksum(SPAN)
    assert guest.verify(SPAN, 5).bad_lines == 0
    guest.write(SPAN.start + 5 * PAGE_BYTES, 1)
    check = guest.verify(SPAN, 5)
    assert (check.bad_lines, check.first_bad) == (1, SPAN.start + 5 * PAGE_BYTES)
    assert guest.checksum(SPAN) != before


def test_a_touch_reaches_every_page_once(qemu: Qemu) -> None:
    touches = qemu.guest.touch(SPAN, Access.READ)
    assert touches.count == SPAN.size_bytes // PAGE_BYTES
    assert touches.min_cycles <= touches.avg_cycles <= touches.max_cycles


def test_a_touch_records_the_cycles_of_each_access(qemu: Qemu) -> None:
    guest = qemu.guest
    guest.write(RECORD + PAGES * 4, 0xC0FFEE)
    touches = guest.touch(SPAN, Access.WRITE, record_gpa=RECORD)
    cycles = [guest.read(RECORD + 4 * i) for i in range(PAGES)]
    assert (touches.count, touches.min_cycles) == (PAGES, min(cycles))
    assert (touches.avg_cycles, touches.max_cycles) == (sum(cycles) // PAGES, max(cycles))
    assert guest.read(RECORD + PAGES * 4) == 0xC0FFEE
    with pytest.raises(LabError, match="the guest keeps itself"):
        guest.touch(SPAN, Access.READ, record_gpa=1 << 20)


def test_it_reaches_memory_above_4_gib(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    options = QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=5 << 30), balloon=False)
    guest = start_qemu(options).guest
    for gpa in (1 << 30, 4 << 30, (6 << 30) - PAGE_BYTES):
        guest.write(gpa, gpa >> 12)
    for gpa in (1 << 30, 4 << 30, (6 << 30) - PAGE_BYTES):
        assert guest.read(gpa) == gpa >> 12


def test_its_balloon_driver_gives_up_and_takes_back(qemu: Qemu) -> None:
    pages = SPAN.size_bytes // PAGE_BYTES
    qemu.guest.fill(SPAN, 5)
    with Target.open(qemu.pid) as target:
        (ram,) = look_at(target, str(qemu.qmp_path))[0].blocks
    actual, resident = qemu.monitor.balloon_bytes(), resident_bytes(qemu.pid, ram.hva_range)
    assert qemu.guest.balloon_inflate(SPAN) == pages
    assert qemu.monitor.balloon_bytes() == actual - SPAN.size_bytes
    assert resident - resident_bytes(qemu.pid, ram.hva_range) == SPAN.size_bytes
    assert qemu.guest.read(SPAN.start) == 0  # it uses what it gave up, and nothing stops it
    assert qemu.guest.balloon_deflate(SPAN) == 0
    assert qemu.monitor.balloon_bytes() == actual
