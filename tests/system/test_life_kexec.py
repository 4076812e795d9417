# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that knows nothing of the balloon that the one before it has left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.life import Served, working
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Memory, QemuOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [*REAL_QEMU, pytest.mark.needs_linux_guest]

RAM_BYTES = 640 << 20
BALLOON_BYTES = 192 << 20
_READ_S = 170.0


@pytest.fixture
def linux() -> Iterator[LinuxQemu]:
    with LinuxQemu(QemuOptions(memory=Memory(size_bytes=RAM_BYTES)), next_kernel=True) as qemu:
        yield qemu


def test_a_kernel_by_kexec_uses_what_the_one_before_gave_up(linux: LinuxQemu) -> None:
    with Served(linux) as served:
        served.ask(RAM_BYTES - BALLOON_BYTES)
        served.check(BALLOON_BYTES)
        linux.guest.kexec()
        with working(linux):
            served.wait_until_reached()  # QEMU remembers what was asked for
            assert served.violations > 0
            found = served.session.verify()
            # What the first kernel gave up and the second has not touched yet is in it as well.
            assert found.disagreements == ()
            assert found.unaccounted_bytes == BALLOON_BYTES - found.ballooned_bytes
            assert found.ballooned_bytes >= BALLOON_BYTES
            served.ask(RAM_BYTES)
            assert served.session.verify().disagreements == ()
    with Served(linux, "freeze") as served, working(linux):  # nothing of before is held against it
        served.check(0)
        served.ask(RAM_BYTES - BALLOON_BYTES)
        served.check(BALLOON_BYTES)
        served.ask(RAM_BYTES)
        served.check(0)
        assert served.violations == 0


def test_a_crash_kernel_reads_the_balloon_as_zeros_and_takes_nothing_back(
    linux: LinuxQemu,
) -> None:
    with Served(linux) as served:
        served.ask(RAM_BYTES - BALLOON_BYTES)
        served.check(BALLOON_BYTES)
        work = linux.guest.start(f"guestwork memory {64 << 20} 5 3600")
        work.read_line()
        linux.guest.crash_into_next_kernel()
        assert served.violations == 0  # it keeps to the memory that was set aside for it
        ran = linux.guest.check("cat /proc/vmcore | wc -c", _READ_S)
        assert int(ran) > RAM_BYTES // 2
        assert served.violations == BALLOON_BYTES >> 12
        served.check(BALLOON_BYTES)
        assert served.session.status().reclaimed_bytes == BALLOON_BYTES
        assert re.search(r"Kernel panic|sysrq", linux.guest.kernel_log())
        linux.monitor.execute("system_reset")
        linux.guest.wait_for_boot()
        with working(linux):
            served.wait_until_reached()
            served.check(BALLOON_BYTES)
            served.ask(RAM_BYTES)
            served.check(0)
