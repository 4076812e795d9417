# SPDX-License-Identifier: GPL-2.0-or-later
"""Stop a VM whose vCPUs may be held in a fault, without a deadlock.

QMP's `stop` waits for every vCPU, and one that is held in a fault under TCG
cannot answer. So the command is sent first, its touches are let go next, and
only then is the answer waited for: the guest executes next to nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.vmm.qemu.qmp import Commands

_HEAD_START_S = 0.02
_PATIENCE_S = 5.0


def stop_vm(monitor: Commands, let_go: Callable[[], None]) -> None:
    """Stop the VM; ``let_go`` answers the touches that are held for it, come what may.

    Raises QmpError when QEMU does not stop; the guest goes on then.
    """
    try:
        try:
            answer = monitor.submit("stop")
            # For QEMU to have read it: under KVM it stops without our help.
            answer.wait(_HEAD_START_S)
        finally:
            let_go()
        answer.result(_PATIENCE_S)
    except QmpError as error:
        raise QmpError(
            "the VM was not paused",
            why=error.why,
            hint="stop it yourself, or detach: the guest is running",
        ) from error
