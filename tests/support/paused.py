# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that never runs its guest, with any command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.qemu import QemuOptions
from uffdballoon.lab.qemu_process import QemuProcess

if TYPE_CHECKING:
    from uffdballoon.lab.qemu_process import Listeners


class PausedQemu(QemuProcess):
    """``arguments`` are what comes after the name of the program; monitors are added."""

    def __init__(self, *arguments: str, options: QemuOptions | None = None) -> None:
        super().__init__(options or QemuOptions())
        self._given = arguments

    def _arguments(self, listeners: Listeners) -> list[str]:
        del listeners
        program = self.options.binary
        return [program, "-S", "-nodefaults", "-display", "none", "-accel", "tcg", *self._given]

    def _connect(self) -> None:
        self.monitor.execute("query-status")
