# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to a machine by its monitor or itself while its guest's balloon is enforced."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.life import Served
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Memory, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU

RAM = Memory(size_bytes=192 << 20)
BALLOON = GpaRange.of(64 << 20, 4 << 20)
FIRST = GpaRange.of(BALLOON.start, PAGE_BYTES)
LAST = GpaRange.of(BALLOON.end - PAGE_BYTES, PAGE_BYTES)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0xB0B


def give_up(served: Served, qemu: Qemu) -> None:
    qemu.guest.balloon_inflate(BALLOON)
    served.serve()
    served.check(BALLOON.size_bytes)


def take_back(served: Served, qemu: Qemu) -> None:
    """Have the guest deflate, and see that it lost nothing and that none is left in the ledger."""
    qemu.guest.balloon_deflate(BALLOON)
    served.serve()
    served.check(0)
    qemu.guest.fill(BALLOON, SEED)
    assert qemu.guest.verify(BALLOON, SEED).bad_lines == 0
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_guest_that_shuts_down_is_told_of_and_its_next_boot_is_enforced(
    accel: Accel, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    options = QemuOptions(accel=accel, memory=RAM, seabios=True, extra=("-no-shutdown",))
    qemu = start_qemu(options)
    qemu.guest.fill(OWNED, SEED)
    with Served(qemu) as served:
        give_up(served, qemu)
        qemu.guest.start("poweroff")
        served.wait_for(EventKind.SHUTDOWN)
        served.wait_for(EventKind.STOPPED)
        served.check(BALLOON.size_bytes)
        qemu.monitor.execute("system_reset")
        qemu.monitor.execute("cont")
        qemu.guest.wait_for_boot()
        served.wait_for(EventKind.RESET)
        served.serve_until(lambda: not served.ballooned_bytes)
        give_up(served, qemu)
        take_back(served, qemu)
        assert served.violations == 0


def test_a_machine_that_is_stopped_while_a_vcpu_is_held_stops_when_it_is_let_go(
    qemu: Qemu,
) -> None:
    qemu.guest.fill(OWNED, SEED)
    with Served(qemu, "freeze") as served:
        give_up(served, qemu)
        touch = qemu.guest.start_touch(FIRST, Access.WRITE)
        served.serve_until(served.session.held)
        stopping = threading.Thread(target=qemu.monitor.execute, args=("stop",))
        stopping.start()  # its answer waits for the vCPU
        served.session.release()
        stopping.join()
        served.wait_for(EventKind.STOPPED)
        found = served.session.verify()
        assert found.disagreements == ()
        assert found.ballooned_bytes == BALLOON.size_bytes - FIRST.size_bytes
        qemu.monitor.execute("cont")
        touch.wait()
        take_back(served, qemu)


def test_a_vcpu_that_is_plugged_in_is_held_to_the_contract(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    options = QemuOptions(memory=RAM, extra=("-smp", "1,maxcpus=2", "-cpu", "qemu64"))
    qemu = start_qemu(options)
    qemu.guest.fill(OWNED, SEED)
    with Served(qemu, "observe") as served:
        give_up(served, qemu)
        slots = qemu.monitor.execute("query-hotpluggable-cpus")
        (free,) = [slot for slot in slots if "qom-path" not in slot]
        qemu.monitor.execute("device_add", driver=free["type"], id="late", **free["props"])
        served.serve_until(lambda: len(served.session.vcpus) == 2)
        qemu.guest.touch_on_second(FIRST, Access.WRITE)
        qemu.guest.touch(LAST, Access.WRITE)
        served.serve()
        touches = [event for event in served.told if isinstance(event, TouchEvent)]
        assert [(event.gpa, event.vcpu) for event in touches] == [(FIRST.start, 1), (LAST.start, 0)]
        assert served.session.verify().disagreements == ()
        take_back(served, qemu)


def test_a_dump_of_the_guests_memory_reads_the_balloon_and_takes_nothing_back(
    qemu: Qemu, tmp_path: Path
) -> None:
    qemu.guest.fill(OWNED, SEED)
    image = tmp_path / "dump"
    with Served(qemu) as served:
        give_up(served, qemu)
        qemu.monitor.execute("dump-guest-memory", paging=False, protocol=f"file:{image}")
        served.wait_for(EventKind.RESUMED)
        assert image.stat().st_size > RAM.size_bytes
        served.check(BALLOON.size_bytes)
        assert served.violations == 0
        assert served.session.status().reclaimed_bytes == BALLOON.size_bytes
        take_back(served, qemu)


@pytest.mark.parametrize("how", ["before", "after"])
def test_memory_that_the_machine_had_at_the_attach_is_enforced_whatever_is_plugged_in(
    how: str, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    size_bytes = 128 << 20
    memory = Memory(size_bytes=RAM.size_bytes, slots=1, max_bytes=1 << 30)
    qemu = start_qemu(QemuOptions(memory=memory))
    qemu.guest.fill(OWNED, SEED)

    def plug() -> None:
        backend = {"qom-type": "memory-backend-ram", "id": "more", "size": size_bytes}
        qemu.monitor.execute("object-add", **backend)
        qemu.monitor.execute("device_add", driver="pc-dimm", id="dimm0", memdev="more")

    if how == "before":
        plug()
    with Served(qemu) as served:
        qemu.guest.balloon_inflate(BALLOON)
        served.serve()
        if how == "after":
            plug()
            assert served.session.status().ram_change_bytes == size_bytes
        served.check(BALLOON.size_bytes)
        qemu.guest.touch(FIRST, Access.WRITE)
        assert served.violations == 1
        take_back(served, qemu)
