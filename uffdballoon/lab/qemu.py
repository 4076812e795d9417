# SPDX-License-Identifier: GPL-2.0-or-later
"""Start real QEMU processes with the micro-guest in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.firmware import quick_firmware
from uffdballoon.lab.microguest import MicroGuest, find_elf
from uffdballoon.lab.qemu_options import Accel, Memory, QemuOptions
from uffdballoon.lab.qemu_process import QemuProcess, unix_server

if TYPE_CHECKING:
    from uffdballoon.lab.qemu_process import Listeners

__all__ = ["Accel", "Memory", "Qemu", "QemuOptions"]


class Qemu(QemuProcess):
    """One QEMU process with the micro-guest in it; ``guest`` is its console."""

    guest: MicroGuest

    def _arguments(self, listeners: Listeners) -> list[str]:
        elf = self._install(find_elf(), "microguest.elf")
        console = unix_server("console", listeners.listen(self.console_path))
        arguments = [*self.options.arguments(legacy_balloon=True), "-kernel", str(elf)]
        if self.options.accel is Accel.KVM and not self.options.seabios:
            arguments += quick_firmware(self.options.binary)
        return [*arguments, "-chardev", console, "-serial", "chardev:console"]

    def _connect(self) -> None:
        self.guest = MicroGuest(self.console_path)
        self.guest.wait_until_up()
