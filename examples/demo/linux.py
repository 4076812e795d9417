# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest's own balloon, enforced: what uffdballoon is for."""

from __future__ import annotations

import contextlib
import re
import shutil
from typing import TYPE_CHECKING

from examples.demo import host
from examples.demo.manager import Manager
from uffdballoon.errors import LabError
from uffdballoon.lab.linux_image import find_packages
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Accel, Memory, QemuOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.demo.screen import Screen
    from uffdballoon.lab.linux import PendingCommand

MIB = 1 << 20
RAM_BYTES = 768 * MIB
BALLOON_BYTES = 256 * MIB
WORK_BYTES = 64 * MIB
SPARED_BYTES = 64 * MIB
"""What the guest does not touch before: it shall not run out of memory."""
ENOUGH_BYTES = BALLOON_BYTES * 3 // 4
"""The driver may give up pages, too, that the guest has never touched."""


@contextlib.contextmanager
def boot_linux(screen: Screen) -> Iterator[LinuxQemu | None]:
    """Start a Linux guest; None, and why, where this host has none."""
    if shutil.which("qemu-system-x86_64") is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            find_packages()
            options = QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=RAM_BYTES))
            qemu = stack.enter_context(LinuxQemu(options))
        except LabError as error:
            screen.say(f"No Linux guest can be had here: {error}\n")
            yield None
            return
        yield qemu


class LinuxDemo:
    """One run; each method is a step, in the order in which they are written."""

    def __init__(self, screen: Screen, qemu: LinuxQemu) -> None:
        self._screen = screen
        self._qemu = qemu

    def run(self) -> None:
        self._screen.say(
            "A real QEMU with a Linux guest of 768 MiB: Debian's kernel, unmodified, with its own "
            "balloon driver."
        )
        self._screen.step("The guest uses its memory, and works on a part of it")
        work = self._use_memory()
        self._screen.step(f"Attach to pid {self._qemu.pid}")
        with Manager(self._qemu.pid, self._qemu.qmp_path) as manager:
            observer = manager.status()["observer"]
            self._screen.claim(
                f"attached; its balloon is followed by the observer {observer}",
                holds=observer in ("trace", "monitor"),
            )
            self.inflate(manager)
            self.deflate(manager)
            code = manager.detach()
        self._screen.claim(f"the manager ended with exit code {code}", holds=code == 0)
        self.check_work(work)

    def _use_memory(self) -> PendingCommand:
        available = self._qemu.guest.memory_info()["MemAvailable"]
        self._qemu.guest.check(f"guestwork hog {available - SPARED_BYTES}")
        work = self._qemu.guest.start(f"guestwork memory {WORK_BYTES} 7 3600")
        work.read_line()
        self._screen.show("it checks random words of 64 MiB, and writes them anew, all the time")
        return work

    def inflate(self, manager: Manager) -> None:
        self._screen.step("Ask its driver for 256 MiB: uffdballoon set PID --balloon 512M")
        resident = host.resident_bytes(self._qemu.pid)
        manager.set_balloon(RAM_BYTES - BALLOON_BYTES)
        manager.verify()
        balloon = manager.status()["balloon"]
        self._screen.claim(
            f"left to the guest, by its own word: {balloon['actual_bytes'] / MIB:.1f} MiB",
            holds=balloon["actual_bytes"] == RAM_BYTES - BALLOON_BYTES,
        )
        ballooned = manager.status()["ballooned_bytes"]
        self._screen.claim(
            f"known to the page, and trapped: {ballooned / MIB:.1f} MiB",
            holds=ballooned == BALLOON_BYTES and balloon["unaccounted_bytes"] == 0,
        )
        dropped = resident - host.resident_bytes(self._qemu.pid)
        self._screen.claim(
            f"resident memory of the target: down by {dropped / MIB:.1f} MiB",
            holds=dropped >= ENOUGH_BYTES,
        )

    def deflate(self, manager: Manager) -> None:
        self._screen.step("Give it back: uffdballoon set PID --balloon 768M")
        manager.set_balloon(RAM_BYTES)
        manager.verify()
        state = manager.wait_until_no_window_is_left()
        self._screen.claim(
            f"in the balloon: {state['ballooned_bytes']} bytes; windows: {state['windows']}",
            holds=state["ballooned_bytes"] == state["windows"] == 0,
        )
        violations = state["touches"]["violations"]
        self._screen.claim(
            f"an honest guest, which told before it touched: {violations} violations",
            holds=violations == 0,
        )

    def check_work(self, work: PendingCommand) -> None:
        self._qemu.guest.check("killall -TERM guestwork")  # the agent, init, does not mind
        counts = dict(re.findall(r"(\w+)=(\d+)", work.wait().output))
        self._screen.claim(
            f"the guest wrote {counts['written']} pages meanwhile; {counts['bad']} words are wrong",
            holds=counts["bad"] == "0",
        )
