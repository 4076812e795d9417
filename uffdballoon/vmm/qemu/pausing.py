# SPDX-License-Identifier: GPL-2.0-or-later
"""Stop a VM whose vCPUs may be held in a fault, without a deadlock.

QMP's `stop` waits for every vCPU, and one that is held in a fault under TCG
cannot answer. So the command is sent first, its touches are let go next, and
only then is the answer waited for: the guest executes next to nothing more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.model.job import Job
    from uffdballoon.vmm.qemu.qmp import Commands, Pending

_HEAD_START_S = 0.02
_PATIENCE_S = 5.0
_LOOKS_S = 0.002


def stopping_vm(monitor: Commands, let_go: Callable[[], None]) -> Job[None]:
    """Stop the VM, and wait for QEMU a turn at a time.

    ``let_go`` answers the touches that are held for it, come what may. Raises QmpError when QEMU
    does not stop; the guest goes on then.
    """
    try:
        try:
            answer = monitor.submit("stop")
            # For QEMU to have read it: under KVM it stops without our help.
            yield from _waiting_for(answer, _HEAD_START_S)
        finally:
            let_go()
        yield from _waiting_for(answer, _PATIENCE_S)
        answer.result()
    except QmpError as error:
        raise QmpError(
            "the VM was not paused",
            why=error.why,
            hint="stop it yourself, or detach: the guest is running",
        ) from error


def _waiting_for(answer: Pending, patience_s: float) -> Job[None]:
    deadline = time.monotonic() + patience_s
    while not answer.wait(0.0) and (left_s := deadline - time.monotonic()) > 0:
        yield min(_LOOKS_S, left_s)
