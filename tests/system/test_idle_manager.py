# SPDX-License-Identifier: GPL-2.0-or-later
"""A manager that sleeps is woken by what the guest gives up, and by nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.support.command import Command
from tests.support.marks import REAL_QEMU
from tests.support.resources import userfaultfd_mappings
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

BALLOON = GpaRange.of(64 << 20, 2 << 20)
ROUNDS = 3
_PATIENCE_S = 20.0


def wait_for_windows(qemu: Qemu, *, there: bool) -> None:
    """Wait for the manager's doing without a question to it, which would wake it."""
    deadline = time.monotonic() + _PATIENCE_S
    while bool(userfaultfd_mappings(qemu.pid)) != there:
        assert time.monotonic() < deadline, "nobody woke the manager"
        time.sleep(0.02)


def test_a_manager_that_nobody_talks_to_traps_what_the_guest_gives_up(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    # Without a monitor: its events would wake the manager, too.
    memory = Memory(size_bytes=192 << 20, backing=Backing.MEMFD, share=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    command = Command()
    with command.attached(qemu.pid, "--qmp", "none"):
        for turn in range(1, ROUNDS + 1):
            qemu.guest.balloon_inflate(BALLOON)
            wait_for_windows(qemu, there=True)
            qemu.guest.touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
            assert command.ask("status", qemu.pid)["touches"]["violations"] == turn
            qemu.guest.balloon_deflate(BALLOON)
            wait_for_windows(qemu, there=False)
