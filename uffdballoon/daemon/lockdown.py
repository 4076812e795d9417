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
    from uffdballoon.session.attachment import Attachment


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


def lock_down(attached: Attachment) -> Lockdown:
    """Keep what is needed from now on; raise UnsupportedError where that cannot be."""
    target, monitor_path = attached.target, _monitor_path(attached)
    kept = held_capabilities() & _needed(attached, monitor_path)
    try:
        keep_capabilities(kept)
        enter_sandbox(
            target.pid,
            attached.injector.tid,
            target.pidfd,
            may_connect=monitor_path is not None,  # again, when QEMU hung up
        )
    except UffdballoonError as error:
        raise UnsupportedError(
            "cannot give up what is not needed",
            why=f"{error.what}: {error.why}",
            hint="--no-sandbox goes on with all privileges",
            pid=target.pid,
            errno=error.errno,
        ) from error
    return Lockdown(sandboxed=True, capabilities=kept)


def stay_open() -> Lockdown:
    """Keep everything."""
    return Lockdown(sandboxed=False, capabilities=held_capabilities())


def _monitor_path(attached: Attachment) -> str | None:
    """Return the monitor's socket as we reach it; None without one."""
    monitor = attached.machine.monitor
    return monitor.path if monitor is not None else None


def _needed(attached: Attachment, monitor_path: str | None) -> frozenset[Capability]:
    """Return what an attach needs while it runs; seen with Linux 6.18.

    SYS_PTRACE for /proc/PID and for each zap of private memory, SYS_NICE for
    process_madvise(2), PERFMON and IPC_LOCK for doorbells at new threads where
    perf traces, KILL for what may end the target, DAC_OVERRIDE to connect to the monitor again.
    """
    needed = {Capability.SYS_PTRACE, Capability.SYS_NICE}
    trace, options = attached.observer.trace, attached.options
    if trace is not None and trace.opens_more:
        needed |= {Capability.PERFMON, Capability.IPC_LOCK}
    policies = (options.policy, attached.asked.policy)  # it may be set again
    if options.memory_patience_ns or any(policy.has(RungKind.KILL) for policy in policies):
        needed.add(Capability.KILL)
    by_path = monitor_path if monitor_path and not monitor_path.startswith(BRIDGES) else None
    if by_path is not None and not _can_write_to(Path(by_path)):
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
