# SPDX-License-Identifier: GPL-2.0-or-later
"""What a manager gives up once it is attached: all that enforcing does not need.

Capabilities, the way to get any back (no_new_privs), and every system call that
is not in the C library's list. For good, and in every thread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import UffdballoonError, UnsupportedError
from uffdballoon.host.privileges import (
    Capability,
    enter_sandbox,
    held_capabilities,
    keep_capabilities,
)
from uffdballoon.model.ladder import RungKind
from uffdballoon.model.records.counters import Sandbox
from uffdballoon.vmm.qemu.peer import BRIDGES

if TYPE_CHECKING:
    from uffdballoon.session import Session


@dataclass(frozen=True, slots=True)
class Lockdown:
    """What a manager may still do."""

    sandboxed: bool
    capabilities: frozenset[Capability]

    def __str__(self) -> str:
        kept = ", ".join(map(str, sorted(self.capabilities))) or "no capability"
        return f"sandbox {'on' if self.sandboxed else 'off'}; holds {kept}"

    def report(self) -> Sandbox:
        """Return it as a part of ``status``."""
        return Sandbox(
            on=self.sandboxed,
            capabilities=tuple(str(capability) for capability in sorted(self.capabilities)),
        )


def lock_down(session: Session) -> Lockdown:
    """Keep what the session needs from now on; raise UnsupportedError where that cannot be."""
    kept = held_capabilities() & _needed(session)
    try:
        keep_capabilities(kept)
        enter_sandbox(
            session.target.pid,
            session.borrowed_tid,
            session.target.pidfd,
            may_connect=session.monitor_path is not None,  # again, when QEMU hung up
        )
    except UffdballoonError as error:
        raise UnsupportedError(
            "cannot give up what is not needed",
            why=f"{error.what}: {error.why}",
            hint="--no-sandbox goes on with all privileges",
            pid=session.target.pid,
            errno=error.errno,
        ) from error
    return Lockdown(sandboxed=True, capabilities=kept)


def stay_open() -> Lockdown:
    """Keep everything."""
    return Lockdown(sandboxed=False, capabilities=held_capabilities())


def _needed(session: Session) -> frozenset[Capability]:
    """Return what this session needs while it runs; seen with Linux 6.18.

    SYS_PTRACE for /proc/PID and for each zap of private memory, SYS_NICE for
    process_madvise(2), PERFMON and IPC_LOCK for doorbells at new threads where
    perf traces, KILL for the rung, DAC_OVERRIDE to connect to the monitor again.
    """
    needed = {Capability.SYS_PTRACE, Capability.SYS_NICE}
    if session.opens_perf_events:
        needed |= {Capability.PERFMON, Capability.IPC_LOCK}
    policies = (session.options.policy, session.attached.asked.policy)  # it may be set again
    if any(policy.has(RungKind.KILL) for policy in policies):
        needed.add(Capability.KILL)
    path = session.monitor_path
    if path is not None and not path.startswith(BRIDGES) and not _can_write_to(Path(path)):
        needed.add(Capability.DAC_OVERRIDE)
    return frozenset(needed)


def _can_write_to(path: Path) -> bool:
    """Tell whether our uid and groups alone let us; access(2) would count capabilities."""
    try:
        statuses = [parent.stat() for parent in path.parents]
        return all(_grants(status, stat.S_IXOTH) for status in statuses) and _grants(
            path.stat(), stat.S_IWOTH
        )
    except OSError:
        return False


def _grants(status: os.stat_result, others_bit: int) -> bool:
    """Look at the one of three sets of permissions that counts (path_resolution(7))."""
    if status.st_uid == os.geteuid():
        return bool(status.st_mode & others_bit << 6)
    if status.st_gid in {os.getegid(), *os.getgroups()}:
        return bool(status.st_mode & others_bit << 3)
    return bool(status.st_mode & others_bit)
