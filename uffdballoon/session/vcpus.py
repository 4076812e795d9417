# SPDX-License-Identifier: GPL-2.0-or-later
"""Which threads are vCPUs: as the monitor tells, or as it can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.vmm.qemu.vcpus import find_vcpus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.model.job import Job
    from uffdballoon.target.process import Target
    from uffdballoon.vmm.qemu.machine import Machine


_AGAIN_S = 5.0


class Vcpus:
    """The numbers of the vCPUs by our ids of their threads, as far as they are known.

    ``tids`` are all threads of the target when we last looked.
    """

    def __init__(self, target: Target, machine: Machine, told: Mapping[int, int] | None) -> None:
        """Begin with what the monitor ``told``; None: nobody could be asked."""
        self._target = target
        self._machine = machine
        self.tids = target.tids()
        self._numbers: dict[int, int] = {}
        self._numbers = self._seen_from_here(told)

    @property
    def numbers(self) -> dict[int, int]:
        return dict(self._numbers)

    def number_of(self, tid: int) -> int | None:
        """Return the number of the vCPU that a thread is; None for another, or one not known."""
        return self._numbers.get(tid)

    def follow_threads(self, loop: FaultLoop) -> Job[None]:
        """Tell the fault loop the vCPUs anew when there are other threads than before."""
        tids = self._target.tids()
        if tids == self.tids:
            return
        told = yield from self._machine.asking_vcpus()
        if told is None and self._machine.monitor is not None:
            yield _AGAIN_S  # as far as we know until then
            return
        self._numbers = self._seen_from_here(told) or self._numbers
        loop.set_vcpus(sorted(self._numbers))
        self.tids = tids

    def _seen_from_here(self, told: Mapping[int, int] | None) -> dict[int, int]:
        if told is None:
            return find_vcpus(self._target, self._numbers)
        return self._target.seen_from_here(told)
