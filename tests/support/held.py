# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of a guest whose faults wait until the test lets them go on."""

from __future__ import annotations

import os
import select
import struct
from typing import TYPE_CHECKING, Self

from uffdballoon.host.uffd import Feature, RegisterMode
from uffdballoon.model.addresses import PAGE_BYTES, Gpa, HvaRange, round_down
from uffdballoon.session import look_at
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.model.addresses import GpaRange

_MESSAGE = struct.Struct(
    "<B7xQQI4x"
)  # struct uffd_msg of a page fault: event, flags, address, ptid
_TIMEOUT_S = 60.0


class HeldMemory:
    """A stretch that the guest has not used yet; at the end everyone who waits goes on.

    The guest's RAM must be one block that begins at 0.
    """

    def __init__(self, qemu: Qemu, span: GpaRange) -> None:
        with Target.open(qemu.pid) as target:
            (ram,) = look_at(target, str(qemu.qmp_path))[0].blocks
            with Injector(target) as injector:
                self._uffd = obtain_userfaultfd(injector).uffd
        self._offset = ram.hva_range.start
        os.set_blocking(self._uffd.fileno(), False)  # poll() wants it so
        self._uffd.api(Feature.THREAD_ID)
        self._uffd.register(self._hva_range(span.start, span.size_bytes), RegisterMode.MISSING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._uffd.close()

    def next_fault(self) -> tuple[Gpa, int]:
        """Wait for a fault; return its page and the id of the thread that waits in it."""
        assert select.select([self._uffd], [], [], _TIMEOUT_S)[0], "no fault came"
        _, _, address, tid = _MESSAGE.unpack(os.read(self._uffd.fileno(), _MESSAGE.size))
        return Gpa(round_down(address - self._offset, PAGE_BYTES)), tid

    def release(self, gpa: int) -> None:
        """Fill a page with zeros; those who wait for it go on."""
        self._uffd.zeropage(self._hva_range(gpa, PAGE_BYTES))

    def _hva_range(self, gpa: int, size_bytes: int) -> HvaRange:
        return HvaRange.of(self._offset + gpa, size_bytes)
