# SPDX-License-Identifier: GPL-2.0-or-later
"""One manager a target: a lock on the process itself, which ends with whoever holds it.

The kernel's object is locked, and no path: managers find each other whatever their
directories, and a pid that is used again is another object. It is flock(2) of a pidfd, whose
inode is the process's own since Linux 6.9 (fs/pidfs.c), or of /proc/PID before.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import psutil

from uffdballoon.errors import TargetBusyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from uffdballoon.target.process import Target

_LOCKS = Path("/proc/locks")
_LOCK_FIELDS = 6  # proc_locks(5): number, kind, mode, access, pid, device:inode


class Claimant(NamedTuple):
    """Who holds a claim, as far as it can be seen from this pid namespace."""

    pid: int
    uid: int


class Claim:
    """The lock on a target, held until it is closed; a context manager."""

    def __init__(self, target: Target) -> None:
        """Take it; raise TargetBusyError when another manager has it.

        Anybody may lock what anybody may open. A holder who could not attach, being neither
        root, nor the target's user, nor ours, is passed over.
        """
        self._fd = _open(target.pid, target.pidfd)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(_locks(), self._fd)
            if holder is None or _could_attach(holder, target.pid):
                self.close()
                raise _busy(target.pid, holder) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others attach."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def claimant_of(pid: int) -> Claimant | None:
    """Return who is attached to process ``pid``; None: nobody, or nobody that can be seen."""
    return claimants_of([pid]).get(pid)


def claimants_of(pids: Iterable[int]) -> dict[int, Claimant]:
    """Return who is attached to which of the processes, by one look at the locks of the host."""
    locks = _locks()
    found = {pid: _claimant_among(locks, pid) for pid in pids}
    return {pid: claimant for pid, claimant in found.items() if claimant is not None}


def _claimant_among(locks: Mapping[str, list[int]], pid: int) -> Claimant | None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        locked = _open(pid, pidfd)
    except OSError:
        return None
    finally:
        os.close(pidfd)
    try:
        holder = _holder(locks, locked)
    finally:
        os.close(locked)
    return holder if holder is not None and _could_attach(holder, pid) else None


def _open(pid: int, pidfd: int) -> int:
    """Open what is locked, apart from ``pidfd``: a keeper may go on holding that one."""
    again = os.pidfd_open(pid)
    own = os.pidfd_open(os.getpid())
    try:
        if os.fstat(own).st_ino == os.fstat(again).st_ino:  # one inode for all pidfds
            os.close(again)
            again = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        elif os.fstat(pidfd).st_ino != os.fstat(again).st_ino:
            os.close(again)
            raise ProcessLookupError(pid)  # the pid is another process's by now
    finally:
        os.close(own)
    return again


def _locks() -> dict[str, list[int]]:
    """Read who has taken a flock(2), by device and inode."""
    holders: dict[str, list[int]] = {}
    for line in _LOCKS.read_text().splitlines():
        fields = line.split()
        if len(fields) >= _LOCK_FIELDS and fields[1] == "FLOCK":
            holders.setdefault(fields[5], []).append(int(fields[4]))
    return holders


def _holder(locks: Mapping[str, list[int]], fd: int) -> Claimant | None:
    """Find who has locked the inode behind ``fd``."""
    there = os.fstat(fd)
    wanted = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
    for holder in locks.get(wanted, []):
        uid = _uid_of(holder)
        if uid is not None:
            return Claimant(holder, uid)
    return None


def _could_attach(holder: Claimant, pid: int) -> bool:
    return holder.uid in {0, os.geteuid(), _uid_of(pid)}


def _uid_of(pid: int) -> int | None:
    """Ask for the uid it runs as: /proc/PID itself is root's where it may not be dumped."""
    try:
        return int(psutil.Process(pid).uids().effective)
    except psutil.Error:
        return None


def attached_already(pid: int, manager: int) -> TargetBusyError:
    """Name the manager that process ``pid`` has."""
    uid = _uid_of(manager)
    return _busy(pid, Claimant(manager, uid) if uid is not None else None)


def _busy(pid: int, holder: Claimant | None) -> TargetBusyError:
    who = "a manager that cannot be seen from here (another pid namespace)"
    if holder is not None:
        who = f"process {holder.pid} of uid {holder.uid}"
    return TargetBusyError(
        f"process {pid} is attached already",
        why=f"its manager is {who}",
        hint=f"use it, or end it with: uffdballoon detach {pid}",
        pid=pid,
    )
