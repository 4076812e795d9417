# SPDX-License-Identifier: GPL-2.0-or-later
"""Start real QEMU processes with a Linux guest in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.linux import LinuxGuest
from uffdballoon.lab.linux_image import build_initramfs, find_packages
from uffdballoon.lab.qemu_process import QemuProcess, unix_server

if TYPE_CHECKING:
    from pathlib import Path

    from uffdballoon.lab.qemu_options import QemuOptions
    from uffdballoon.lab.qemu_process import Listeners

# A vulnerable CPU is none of a test's business, and the mitigations cost.
# no_timer_check: on a busy host the guest's clock stands still for so long that the kernel, which
# waits for ten ticks, finds its timer broken and panics (arch/x86/kernel/apic/io_apic.c).
_KERNEL_ARGUMENTS = "console=ttyS0 loglevel=7 mitigations=off random.trust_cpu=on no_timer_check"

_ROOM_TO_CRASH = "crashkernel=160M"
"""What the kernel sets aside for the one that is started when it crashes."""

_TOLD_CHARACTERS = 2000
"""Of the kernel's log, when the guest does not come up: a panic with its call trace."""


class LinuxQemu(QemuProcess):
    """One QEMU process with Debian's kernel in it; ``guest`` runs commands there.

    The kernel writes its log to one serial port, which QEMU puts into a file; commands go over
    another. The balloon device is a modern one. Start it with Accel.TCG: whether KVM can boot
    Linux depends on the host.
    """

    guest: LinuxGuest

    def __init__(self, options: QemuOptions, *, next_kernel: bool = False) -> None:
        """With ``next_kernel`` the guest has another kernel at hand, for kexec and for a crash."""
        super().__init__(options)
        self._next_kernel = next_kernel

    def _arguments(self, listeners: Listeners) -> list[str]:
        packages = find_packages()
        kernel = self._install(packages.kernel, "vmlinuz")
        initramfs = self._write(
            "initramfs", build_initramfs(packages, next_kernel=self._next_kernel)
        )
        arguments = f"{_KERNEL_ARGUMENTS} {_ROOM_TO_CRASH if self._next_kernel else ''}"
        console = unix_server("console", listeners.listen(self.console_path))
        return [
            *self.options.arguments(legacy_balloon=False),
            *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", arguments),
            *("-chardev", f"file,id=kernel-log,path={self._kernel_log_path}"),
            *("-serial", "chardev:kernel-log"),
            *("-chardev", console, "-serial", "chardev:console"),
        ]

    def _connect(self) -> None:
        self.guest = LinuxGuest(self.console_path, self._kernel_log_path)
        self.guest.wait_until_up()

    def _last_words(self) -> str:
        if not self._kernel_log_path.exists():
            return super()._last_words()
        log = self._kernel_log_path.read_text(errors="replace")
        return f"{super()._last_words()}\n{log[-_TOLD_CHARACTERS:]}".strip()

    @property
    def _kernel_log_path(self) -> Path:
        return self.directory / "kernel-log"
