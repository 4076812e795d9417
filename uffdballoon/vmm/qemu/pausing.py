# SPDX-License-Identifier: GPL-2.0-or-later
"""Stop a VM whose vCPUs may be held in a fault, without a deadlock.

QMP's `stop` waits for every vCPU, and one that is held in a fault under TCG
cannot answer. So the command is sent first, its touches are let go next, and
only then is the answer waited for: the guest executes next to nothing more.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

from qemu.qmp import QMPError

from uffdballoon.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.vmm.qemu.monitor import Monitor

_HEAD_START_S = 0.02
_PATIENCE_S = 5.0


def stop_vm(monitor: Monitor, let_go: Callable[[], None]) -> None:
    """Stop the VM; ``let_go`` answers the touches that are held for it, come what may.

    Raises QmpError when QEMU does not stop; the guest goes on then.
    """
    try:
        answer = monitor.submit("stop")
        # For QEMU to have read it: under KVM it stops without our help.
        concurrent.futures.wait([answer], timeout=_HEAD_START_S)
    finally:
        let_go()
    try:
        answer.result(_PATIENCE_S)
    except TimeoutError:
        why = f"no answer in {_PATIENCE_S:g} s"
    except (QMPError, OSError) as error:
        why = str(error)
    else:
        return
    raise QmpError(
        "the VM was not paused", why=why, hint="stop it yourself, or detach: the guest is running"
    )
