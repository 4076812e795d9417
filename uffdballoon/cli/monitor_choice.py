# SPDX-License-Identifier: GPL-2.0-or-later
"""Which monitor of a QEMU is used, where the operator names none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import UsageError
from uffdballoon.host.libvirt_binding import INSTALL, lacking_modules
from uffdballoon.model.printable import printable
from uffdballoon.model.records.target import MonitorOwner, MonitorSocket, MonitorState
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.libvirt_domain import WORD, is_domain
from uffdballoon.vmm.qemu.monitors import find_monitors
from uffdballoon.vmm.qemu.options import split_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

AUTO, NONE = "auto", "none"
_ON_DEMAND = {MonitorOwner.PROXMOX: "Proxmox", MonitorOwner.GANETI: "Ganeti"}
"""Who connects when there is need, and fails where another client is: it is never kept out."""
_ANOTHER = "start QEMU with another one, -qmp unix:PATH,server=on,wait=off, and give --qmp PATH"
_MOST_OF_A_PATH = 216  # twice of what a socket's may have, unix(7)


class MonitorChoice(NamedTuple):
    """The path of a monitor, or None; whether it is only asked, and left; what to tell."""

    path: str | None
    leaves: bool = False
    told: str = ""


def parse_qmp(text: str) -> str:
    """Read the value of --qmp: a word, an URI of libvirt's, a path, or QEMU's own unix:PATH,...

    Raises UsageError.
    """
    path = split_keys(text.removeprefix("unix:"), "path").get("path", "")
    found = path if text.startswith("unix:") else text
    if not found:
        raise UsageError(
            "--qmp names no socket",
            why="its path is empty",
            hint=f"give a path, {AUTO} or {NONE}",
        )
    return found


def choose_monitor(pid: int, asked: str) -> MonitorChoice:
    """Choose the monitor of process ``pid``; a path that was asked for is it.

    A socket that we must not write to is left out, and one whose path is not absolute: it begins
    where QEMU was started.

    Raises NoSuchTargetError, TargetGoneError and PermissionDeniedError.
    """
    if asked == NONE:
        return MonitorChoice(None)
    if asked != AUTO:
        return MonitorChoice(asked)
    with Target.open(pid) as target:
        chosen = choose_of([m for m in find_monitors(target) if _may_connect(pid, m.path)])
        if chosen.path is None and is_domain(target.cmdline):
            return _by_libvirt(pid)
    return chosen


def _by_libvirt(pid: int) -> MonitorChoice:
    """Choose the monitor that libvirt has, where libvirt can be asked for it."""
    if not lacking_modules():
        return MonitorChoice(WORD)
    return MonitorChoice(
        None,
        told=f"going on without libvirt, whose domain {pid} is and which has its monitor: Python's "
        f"binding to it is not installed ({INSTALL})",
    )


def choose_of(monitors: Sequence[MonitorSocket]) -> MonitorChoice:
    """Choose a free monitor that nobody misses, or one that can be asked, or none.

    libvirt's own is free while libvirtd is restarted, and is never taken.
    """
    free = [monitor for monitor in monitors if monitor.state is MonitorState.FREE]
    for monitor in free:
        if monitor.owner is None:
            told = f"the monitor at {_shown(monitor)} is free, and used; --qmp none does without"
            return MonitorChoice(monitor.path, told=told)
    for monitor in free:
        if monitor.owner in _ON_DEMAND:
            owner = _ON_DEMAND[monitor.owner]
            told = (
                f"the monitor at {_shown(monitor)} is for {owner}, which connects when there is "
                "need: it is asked of the guest's memory and left at once, so that resets are not "
                f"seen. Have it for good: --qmp with that path, which keeps {owner} out; or "
                f"{_ANOTHER}"
            )
            return MonitorChoice(monitor.path, leaves=True, told=told)
    for monitor in monitors:
        if monitor.state is MonitorState.HELD:
            whose = "libvirt" if monitor.owner is MonitorOwner.LIBVIRT else "another client"
            told = (
                f"the monitor at {_shown(monitor)} is held by {whose}, and serves one client at a "
                f"time, so that none is used. To have one, {_ANOTHER}"
            )
            return MonitorChoice(None, told=told)
    return MonitorChoice(None)


def _may_connect(pid: int, path: str) -> bool:
    """Tell whether a socket can be written to, here or in the target's own root."""
    return path.startswith("/") and any(
        os.access(there, os.W_OK, effective_ids=True) for there in (path, f"/proc/{pid}/root{path}")
    )


def _shown(monitor: MonitorSocket) -> str:
    return printable(monitor.path, _MOST_OF_A_PATH)
