# SPDX-License-Identifier: GPL-2.0-or-later
"""The service manager that started us, where there is one: it is told, and it holds fds for us.

Sources: sd_notify(3), sd_pid_notify_with_fds(3), sd_notify_barrier(3) and sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from uffdballoon.core.keeper import NR_TRACE_FDS
from uffdballoon.errors import ControlError

if TYPE_CHECKING:
    from uffdballoon.core.keeper import Kept

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_PATIENCE_MS = 5000
_UFFD, _LEDGER, _PIDFD, _TRACE, _MONITOR = "uffd", "ledger", "pidfd", "trace", "monitor"


class ServiceManager:
    """Where a service tells how it is, NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        """Connect to it; raise ControlError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            self._socket.close()
            raise ControlError(
                f"cannot talk to the service manager at {address}",
                why=error.strerror or "",
                hint="NOTIFY_SOCKET names a socket that is not there: unset it",
                errno=error.errno,
            ) from error

    @classmethod
    def find(cls) -> Self | None:
        """Connect to the one that our environment names; None without."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        return cls(address) if address[:1] in {"/", "@"} else None

    @property
    def is_known_to_store(self) -> bool:
        """Whether it has said that it holds fds; an older systemd says nothing."""
        return "FDSTORE" in os.environ

    def tell(self, *assignments: str, fds: tuple[int, ...] = ()) -> None:
        """Send assignments such as READY=1; one that is gone is told nothing."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, ["\n".join(assignments).encode()], fds)

    def tell_attached(self, pid: int, policy: object, *more: str) -> None:
        """Say in the unit's status what is enforced; ``more`` goes with it."""
        self.tell(*more, f"STATUS=attached to {pid}, enforcing {policy}")

    def wait_until_heard(self) -> bool:
        """Wait until it has read what it was told before."""
        ours, its = os.pipe2(os.O_CLOEXEC)
        try:
            self.tell("BARRIER=1", fds=(its,))
        finally:
            os.close(its)
        poll = select.poll()
        poll.register(ours, 0)  # POLLHUP: it has closed the other end
        try:
            return bool(poll.poll(_PATIENCE_MS))
        finally:
            os.close(ours)

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Passed:
    """The fds that a service manager held, by their names."""

    fds: dict[str, int]

    @classmethod
    def take(cls) -> Self:
        """Take what was passed to this very process, once."""
        named = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        count, pid = (os.environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID"))
        if pid != str(os.getpid()) or not count.isdecimal():
            return cls({})
        fds = range(_FIRST_FD, _FIRST_FD + int(count))
        for fd in fds:
            os.set_inheritable(fd, False)  # noqa: FBT003 - its only form
        if len(named) != len(fds):
            named = [f"unknown-{fd}" for fd in fds]
        return cls(dict(zip(named, fds, strict=True)))

    def of(self, pid: int | None) -> dict[str, int]:
        """Return what was stored for process ``pid``, which still lives; close all else."""
        mine = {name.partition("-")[0]: fd for name, fd in self.fds.items() if _is_of(name, pid)}
        complete = {_UFFD, _LEDGER, _PIDFD} <= mine.keys() and not _has_ended(mine[_PIDFD])
        kept = set(mine.values()) if complete else set()
        for fd in self.fds.values():
            if fd not in kept:
                os.close(fd)
        return mine if complete else {}


class Store:
    """What the service manager holds of one target: a Keeping."""

    def __init__(self, manager: ServiceManager, pid: int) -> None:
        self._manager = manager
        self._pid = pid

    def hold(self, kept: Kept) -> Self:
        """Have it hold the fds, which stay ours, too.

        FDPOLL=0: a userfaultfd that is read by a blocking read() is never ready but in error
        to poll(), for which systemd would drop it.
        """
        named = {_UFFD: kept.uffd, _LEDGER: kept.memory, _PIDFD: kept.pidfd}
        named |= {f"{_TRACE}{i}": fd for i, fd in enumerate(kept.trace)}
        if kept.monitor is not None:
            named[_MONITOR] = kept.monitor
        for name, fd in named.items():
            self._manager.tell("FDSTORE=1", f"FDNAME={name}-{self._pid}", "FDPOLL=0", fds=(fd,))
        if not self._manager.wait_until_heard():
            raise ControlError(
                "the service manager does not answer",
                why="it was asked to hold the traps",
                hint="leave --on-exit hold out, or run without NOTIFY_SOCKET",
            )
        return self

    def serves(self) -> None:
        """Do nothing: it holds what it holds until it is told otherwise."""

    def end(self) -> None:
        """Have it let go, and wait until it has."""
        traces = (f"{_TRACE}{i}" for i in range(NR_TRACE_FDS))
        for name in (_UFFD, _LEDGER, _PIDFD, _MONITOR, *traces):
            self._manager.tell("FDSTOREREMOVE=1", f"FDNAME={name}-{self._pid}")
        self._manager.wait_until_heard()

    def close(self) -> None:
        """Leave what is held where it is."""


def trace_of(fds: dict[str, int]) -> tuple[int, ...]:
    """Return the fds of a trace among those that were passed, in their order."""
    return tuple(fds[name] for name in sorted(fds) if name.startswith(_TRACE))


def _is_of(name: str, pid: int | None) -> bool:
    return name.endswith(f"-{pid}") and name.count("-") == 1


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
