# SPDX-License-Identifier: GPL-2.0-or-later
"""What a Linux guest does with its memory, and what is done to it, while its balloon is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.life import Served, working
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Memory, QemuOptions
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [*REAL_QEMU, pytest.mark.needs_linux_guest]

RAM_BYTES = 768 << 20
BALLOON_BYTES = 256 << 20
LEFT_BYTES = RAM_BYTES - BALLOON_BYTES
PLUGGED_BYTES = 128 << 20
_VIRTIO_MEM = {"path": "/machine/peripheral/plug0", "property": "requested-size"}


@pytest.fixture(scope="module")
def linux() -> Iterator[LinuxQemu]:
    """One guest for all: each test leaves its balloon empty."""
    plug = (
        *("-object", f"memory-backend-ram,id=plug,size={2 * PLUGGED_BYTES}B"),
        *("-device", "virtio-mem-pci,id=plug0,memdev=plug,requested-size=0"),
        *("-device", "pvpanic", "-action", "panic=pause"),
    )
    memory = Memory(size_bytes=RAM_BYTES, slots=1, max_bytes=2 << 30)
    with LinuxQemu(QemuOptions(memory=memory, extra=plug)) as qemu:
        yield qemu


def state_of(linux: LinuxQemu) -> str:
    return str(linux.monitor.execute("query-status")["status"])


def fill(served: Served) -> None:
    served.ask(LEFT_BYTES)
    served.check(BALLOON_BYTES)


def empty(served: Served) -> None:
    served.ask(RAM_BYTES)
    served.check(0)
    assert served.violations == 0


_MOVE_PAGES = (
    "for block in 5 4 3 2 1; do state=/sys/devices/system/memory/memory$block/state; "
    "echo offline > $state 2> /dev/null && echo online > $state; done; true"
)
"""Have the kernel clear those blocks of 128 MiB of which it can move every page elsewhere."""


def moved_pages(linux: LinuxQemu) -> int:
    return int(linux.guest.check("awk '/^balloon_migrate/ {print $2}' /proc/vmstat"))


def test_pages_of_the_balloon_that_the_guest_moves_are_followed(linux: LinuxQemu) -> None:
    """The driver gives another page up for each that is moved, and takes that back."""
    with Served(linux) as served, working(linux):
        fill(served)
        before = moved_pages(linux)
        linux.guest.check(_MOVE_PAGES)
        served.serve()
        served.check(BALLOON_BYTES)
        moved = moved_pages(linux) - before
        assert moved > 0
        assert served.session.status().observed.deflated_pages == moved
        empty(served)


def test_a_guest_that_is_stopped_in_the_middle_of_an_inflate_goes_on_with_it(
    linux: LinuxQemu,
) -> None:
    with Served(linux) as served, working(linux):
        served.session.ask_balloon(LEFT_BYTES)
        served.serve_until(lambda: served.ballooned_bytes)
        linux.monitor.execute("stop")
        served.wait_for(EventKind.STOPPED)
        assert served.session.verify().disagreements == ()
        linux.monitor.execute("cont")
        served.wait_for(EventKind.RESUMED)
        served.wait_until_reached()
        served.check(BALLOON_BYTES)
        empty(served)


def test_a_guest_that_sleeps_takes_all_back_and_gives_it_up_when_it_wakes(
    linux: LinuxQemu,
) -> None:
    with Served(linux) as served, working(linux):
        fill(served)
        slept = linux.guest.start("echo mem > /sys/power/state")
        served.serve_until(lambda: state_of(linux) == "suspended")
        served.check(0)
        served.wait_for(EventKind.SUSPENDED)
        linux.monitor.execute("system_wakeup")
        served.serve_until(slept.is_there)
        assert slept.wait().status == 0
        served.wait_for(EventKind.WOKEN)
        served.wait_until_reached()
        served.check(BALLOON_BYTES)
        empty(served)


def test_a_panic_leaves_the_balloon_as_it_was(linux: LinuxQemu) -> None:
    with Served(linux) as served:
        with working(linux):
            fill(served)
        linux.guest.panic()
        served.serve_until(lambda: "Kernel panic - not syncing" in linux.guest.kernel_log())
        served.check(BALLOON_BYTES)
        linux.monitor.execute("system_reset")
        linux.guest.wait_for_boot()
        with working(linux):
            served.wait_until_reached()
            served.wait_for(EventKind.RESET)
            served.check(BALLOON_BYTES)
            empty(served)


_TELL_PANIC = "guestwork port 0x505 1"
"""What the driver of the panic device does (QEMU, docs/specs/pvpanic.txt)."""


def test_a_panic_that_its_device_tells_of_is_an_event(linux: LinuxQemu) -> None:
    with Served(linux) as served, working(linux):
        fill(served)
        told = linux.guest.start(_TELL_PANIC)
        served.wait_for(EventKind.GUEST_PANICKED)
        served.wait_for(EventKind.STOPPED)
        assert state_of(linux) == "guest-panicked"
        panic = next(e for e in served.told if e.kind is EventKind.GUEST_PANICKED)
        assert panic.why == "QEMU does what it is set to: pause"  # type: ignore[union-attr]
        served.check(BALLOON_BYTES)
        linux.monitor.execute("cont")
        assert told.wait().status == 0
        empty(served)


def test_memory_of_virtio_mem_comes_and_goes(linux: LinuxQemu) -> None:
    linux.guest.check("echo online_movable > /sys/devices/system/memory/auto_online_blocks")
    linux.guest.check("insmod /lib/modules/virtio_mem.ko")
    with Served(linux) as served, working(linux):
        linux.monitor.execute("qom-set", **_VIRTIO_MEM, value=PLUGGED_BYTES)
        served.wait_for(EventKind.MEMORY_CHANGED)
        served.serve_until(lambda: served.session.status().ram_change_bytes == PLUGGED_BYTES)
        served.check(0)
        served.ask(LEFT_BYTES)  # `actual` counts nothing of virtio-mem
        found = served.session.verify()
        assert found.disagreements == ()
        assert found.unaccounted_bytes == BALLOON_BYTES - found.ballooned_bytes  # of what came
        served.ask(RAM_BYTES)
        linux.monitor.execute("qom-set", **_VIRTIO_MEM, value=0)
        served.serve_until(lambda: served.session.status().ram_change_bytes == 0)
        fill(served)
        empty(served)


@pytest.mark.parametrize("deflates", [True, False], ids=["deflate-on-oom", "without"])
def test_a_guest_that_runs_out_of_memory_takes_back_what_it_needs(*, deflates: bool) -> None:
    memory = Memory(size_bytes=RAM_BYTES)
    options = QemuOptions(memory=memory, deflate_on_oom=deflates)
    with LinuxQemu(options) as qemu, Served(qemu) as served, working(qemu):
        served.ask(RAM_BYTES - 2 * BALLOON_BYTES)
        hog = qemu.guest.start(f"guestwork hog {BALLOON_BYTES}")
        served.serve_until(hog.is_there)
        served.serve()
        assert (hog.wait().status == 0) is deflates
        found = served.session.verify()
        assert (found.unaccounted_bytes, found.disagreements) == (0, ())
        assert (found.ballooned_bytes < 2 * BALLOON_BYTES) is deflates
        assert served.violations == 0
