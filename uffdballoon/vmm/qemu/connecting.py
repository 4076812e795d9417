# SPDX-License-Identifier: GPL-2.0-or-later
"""How an attach comes to a monitor: connect, go on with what is held, or go on without."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.core.relay import Lookout
from uffdballoon.errors import MonitorBusyError
from uffdballoon.vmm.qemu.libvirt_domain import is_by_libvirt
from uffdballoon.vmm.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.core.keeper import Held

_STEP_S = 2.0  # whoever touches the balloon waits meanwhile


class Connected(NamedTuple):
    """A monitor, or a lookout that sees resets without one, or neither.

    ``missed``: nobody has seen resets since the manager before us ended.
    """

    monitor: Monitor | None
    lookout: Lookout | None = None
    missed: bool = False


def connect(
    path: str | None,
    *,
    pid: int,
    needed: bool,
    held: Held | None,
    progress: Callable[[str], None],
) -> Connected:
    """Connect to the monitor at ``path``; go on without where another client holds it.

    A connection that is ``held`` is gone on with, with or without a path, which must be of
    that process, too. Raises QmpError, and MonitorBusyError when it is ``needed``.
    """
    missed = held is not None and (held.monitor is not None or path is not None)
    if held is not None and held.monitor is not None:
        raw = socket.socket(fileno=held.monitor)
        kept = _take_over(raw, held.memory, path, pid, progress, needed=needed)
        if kept is not None:
            return kept
    if path is None:
        return Connected(None, missed=missed)
    try:
        monitor = Monitor.connect(path, pid=pid)
        if is_by_libvirt(path):
            progress("monitor by libvirt, which goes on beside us (virsh)")
        return Connected(monitor, missed=missed)
    except MonitorBusyError as busy:
        if needed:
            raise
        progress(
            f"going on without the monitor: {busy}. Resets of the guest are not seen, "
            "the balloon cannot be set, and RAM is found by what /proc shows"
        )
        return Connected(None, missed=missed)


def _take_over(
    raw: socket.socket,
    memory: int,
    path: str | None,
    pid: int,
    progress: Callable[[str], None],
    *,
    needed: bool,
) -> Connected | None:
    """Go on with the connection that is held; None when QEMU has ended it."""
    if _has_ended(raw):
        raw.close()
        return None
    spare = raw.dup()
    monitor = Monitor.take_over(raw, path, pid=pid, memory=memory, timeout_s=_STEP_S)
    if monitor is not None:
        spare.close()
        progress("connection to the monitor taken over")
        return Connected(monitor)
    if needed:
        spare.close()
        raise MonitorBusyError(
            "the monitor does not answer",
            why="QEMU waits, for a touch of its balloon to be answered perhaps",
            hint="attach with a policy, and without a limit, that needs no monitor",
        )
    if _has_ended(spare):
        spare.close()
        return None
    progress(
        "going on without the monitor: QEMU does not answer, as when it waits for a touch of "
        "its balloon. Resets of the guest are seen, but the balloon cannot be set"
    )
    return Connected(None, Lookout(spare, memory))


def _has_ended(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP and POLLERR are told in any case
    return bool(poll.poll(0))
