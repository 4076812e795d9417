# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest that breaks contracts does what it is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.held import HeldMemory
from tests.support.resources import resident_bytes
from uffdballoon.errors import LabError
from uffdballoon.lab.microguest import Race, SecondState
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access
from uffdballoon.session import look_at
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.microguest import MicroGuest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_qemu]

SPAN = GpaRange.of(64 << 20, 1 << 20)
RECORD = 96 << 20
HELD = GpaRange.of(128 << 20, 8 * PAGE_BYTES)
NOTHING = GpaRange.of(512 << 20, 256 << 20)
"""No memory: reads give the same each time, writes are lost, and both take long."""
UNMAPPED = GpaRange.of(64 << 30, PAGE_BYTES)
PAGES = SPAN.size_bytes // PAGE_BYTES


@pytest.fixture
def two(accel: Accel, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    """A small guest of two processors under each accelerator."""
    return start_qemu(QemuOptions(accel=accel, memory=Memory(size_bytes=192 << 20), processors=2))


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


def _assert_written_by_address(guest: MicroGuest) -> None:
    for gpa in (SPAN.start, SPAN.start + 5 * PAGE_BYTES, SPAN.end - PAGE_BYTES):
        assert guest.read(gpa) == gpa


def test_the_second_processor_touches_every_page_once(two: Qemu) -> None:
    touches = two.guest.touch_on_second(SPAN, Access.WRITE)
    assert touches.count == PAGES
    assert touches.min_cycles <= touches.avg_cycles <= touches.max_cycles
    _assert_written_by_address(two.guest)
    assert two.guest.touch_on_second(SPAN, Access.READ).count == PAGES


def test_the_second_processor_works_beside_the_first(two: Qemu) -> None:
    guest = two.guest
    guest.start_on_second(SPAN, Access.WRITE)
    assert guest.wait_for_second().count == PAGES
    assert guest.second_state() == SecondState(busy=False, done=PAGES)
    _assert_written_by_address(guest)
    guest.start_on_second(NOTHING, Access.READ, stride_bytes=4)
    assert guest.second_state().busy
    for refused in (guest.touch_on_second, guest.start_on_second, guest.race):
        with pytest.raises(LabError, match="the second processor is busy"):
            refused(SPAN, Access.READ)
    done = guest.second_state().done
    while guest.second_state().done == done:
        pass
    assert guest.touch(SPAN, Access.READ).count == PAGES


def test_one_processor_is_told_from_two(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    guest = start_qemu(QemuOptions(accel=Accel.TCG)).guest
    with pytest.raises(LabError, match="there is no second processor"):
        guest.touch_on_second(SPAN, Access.READ)
    assert guest.second_state() == SecondState(busy=False, done=0)
    with pytest.raises(LabError, match="was given nothing to touch"):
        guest.wait_for_second()


def test_the_second_processor_starts_again_after_a_reset(two: Qemu) -> None:
    assert two.guest.touch_on_second(SPAN, Access.READ).count == PAGES
    two.guest.reset()
    assert two.guest.touch_on_second(SPAN, Access.READ).count == PAGES


def test_an_exception_ends_the_work_of_the_second_processor(two: Qemu) -> None:
    guest = two.guest
    with pytest.raises(LabError, match="exception on the second processor vector=0xe"):
        guest.touch_on_second(UNMAPPED, Access.WRITE)
    guest.start_on_second(UNMAPPED, Access.READ)
    with pytest.raises(LabError, match="exception on the second processor vector=0xe"):
        guest.wait_for_second()
    assert guest.second_state() == SecondState(busy=False, done=0)
    assert guest.touch_on_second(SPAN, Access.READ).count == PAGES


def test_an_exception_ends_a_race_on_both_processors(two: Qemu) -> None:
    for access in Access:
        with pytest.raises(LabError, match="exception vector=0xe"):
            two.guest.race(UNMAPPED, access)
        assert two.guest.race(SPAN, access) == Race(count=PAGES, bad=0)


def test_a_race_leaves_what_both_wrote(two: Qemu) -> None:
    assert two.guest.race(SPAN, Access.WRITE) == Race(count=PAGES, bad=0)
    _assert_written_by_address(two.guest)
    assert two.guest.read(SPAN.start + 8) == SPAN.start ^ 0xFFFFFFFF
    assert two.guest.race(SPAN, Access.READ) == Race(count=PAGES, bad=0)


def test_a_race_tells_of_writes_that_are_lost(two: Qemu) -> None:
    places = GpaRange.of(NOTHING.start, 4 * PAGE_BYTES)
    assert two.guest.race(places, Access.READ) == Race(count=4, bad=0)
    assert two.guest.race(places, Access.WRITE) == Race(4, bad=4, first_bad=places.start)


@pytest.mark.needs_userfaultfd
@pytest.mark.needs_ptrace
def test_the_first_processor_answers_while_the_second_is_held(two: Qemu) -> None:
    guest = two.guest
    with HeldMemory(two, HELD) as held:
        guest.start_on_second(HELD, Access.WRITE)
        for page in range(4):
            assert held.next_fault()[0] == HELD.start + page * PAGE_BYTES
            assert guest.second_state() == SecondState(busy=True, done=page)
            assert guest.touch(SPAN, Access.WRITE).count == PAGES
            held.release(HELD.start + page * PAGE_BYTES)
    assert guest.wait_for_second().count == HELD.size_bytes // PAGE_BYTES
    assert guest.read(HELD.start) == HELD.start


@pytest.mark.needs_userfaultfd
@pytest.mark.needs_ptrace
@pytest.mark.parametrize("access", Access)
def test_both_processors_of_a_race_fault_on_the_same_page(two: Qemu, access: Access) -> None:
    letter = access.value[0]
    with HeldMemory(two, HELD) as held:
        pending = two.guest.start(
            f"race {HELD.start:x} {HELD.size_bytes:x} {PAGE_BYTES:x} {letter}"
        )
        for gpa in range(HELD.start, HELD.end, PAGE_BYTES):
            faults = [held.next_fault(), held.next_fault()]
            assert [fault[0] for fault in faults] == [gpa, gpa]
            assert len({tid for _, tid in faults}) == 2
            held.release(gpa)
        assert pending.wait() == "count=0x8 bad=0x0"


@pytest.mark.parametrize("on", [True, False])
def test_commands_run_with_interrupts_as_wanted(two: Qemu, on: bool) -> None:  # noqa: FBT001
    guest = two.guest
    guest.set_interrupts(on=True)
    guest.set_interrupts(on=on)
    assert guest.touch(SPAN, Access.WRITE).count == PAGES
    assert guest.race(SPAN, Access.WRITE) == Race(count=PAGES, bad=0)
    for touch in (guest.touch, guest.touch_on_second):
        with pytest.raises(LabError, match="vector=0xe"):
            touch(UNMAPPED, Access.READ)
    guest.start_on_second(NOTHING, Access.READ, stride_bytes=4)
    guest.start_touch(NOTHING, Access.READ, stride_bytes=4)
    while _interrupts_enabled(two) != [on, on]:
        pass  # the first may not have begun


def _interrupts_enabled(qemu: Qemu) -> list[bool]:
    """Look at IF of each processor that is not asleep."""
    registers = qemu.monitor.hmp("info registers -a")
    found = re.findall(r"RFL=(\w+).*HLT=0", registers)
    return [bool(int(flags, 16) & 0x200) for flags in found]
