# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper: a process that holds a userfaultfd and a ledger while there is no manager.

Who connects to its socket gets both; the connection is what tells that a manager lives.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from uffdballoon._native import ffi, lib
from uffdballoon.errors import ControlError, TargetBusyError
from uffdballoon.host.errnos import check

if TYPE_CHECKING:
    from pathlib import Path

_SERVES = bytes([lib.UFFDB_KEEPER_SERVES])
_RELEASE = bytes([lib.UFFDB_KEEPER_RELEASE])
_NR_FDS = 2  # without a trace
NR_TRACE_FDS = int(lib.UFFDB_TRACE_FDS)
_COUNTS = {_NR_FDS + trace + monitor for trace in (0, NR_TRACE_FDS) for monitor in (0, 1)}
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What a manager must not lose: the ledger's memfd, a pidfd, and a trace's fds or none.

    ``monitor`` is connected to QEMU's monitor, or None.
    """

    uffd: int
    memory: int
    pidfd: int
    trace: tuple[int, ...]
    monitor: int | None = None


class Keeping(Protocol):
    """Whoever holds it, as the manager sees it."""

    def serves(self) -> None:
        """Say that we answer faults: what bounds the frozen time begins anew when we end."""

    def end(self) -> None:
        """Have it close what it holds, and wait until it has."""

    def close(self) -> None:
        """Leave it alone, which holds on unless end() was called."""


@dataclass(frozen=True, slots=True)
class Held:
    """What was handed over to us: the fds are ours, and so is who still holds them, too.

    ``trace`` are the fds of a trace that went on meanwhile, or none. Nobody has read
    ``monitor`` meanwhile, a connection to QEMU's, or None.
    """

    keeper: Keeping
    uffd: int
    memory: int
    trace: tuple[int, ...] = ()
    monitor: int | None = None


class Keeper:
    """The connection to a keeper, which tells it that a manager lives: a Keeping."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def serves(self) -> None:
        """Have its time begin anew when we end; until then that of before goes on."""
        with contextlib.suppress(OSError):  # it has ended: nothing is kept any more
            self._connection.sendall(_SERVES)

    def end(self) -> None:
        """Have it close what it holds, and wait until it has."""
        with contextlib.suppress(OSError):
            self._connection.settimeout(_PATIENCE_S)
            self._connection.sendall(_RELEASE)
            self._connection.recv(1)

    def close(self) -> None:
        self._connection.close()


def start_keeper(listener: socket.socket, kept: Kept, hold_ns: int) -> Keeper:
    """Start a keeper of these fds, which stay ours, too."""
    ours, its = socket.socketpair()
    monitor = [] if kept.monitor is None else [kept.monitor]
    fds = [kept.uffd, kept.memory, *kept.trace, *monitor]
    with its:
        fields = {
            "listener": listener.fileno(),
            "kept": fds,
            "nr_kept": len(fds),
            "pidfd": kept.pidfd,
            "manager": its.fileno(),
            "hold_ns": hold_ns,
        }
        keeper = ffi.new("struct uffdb_keeper *", fields)
        check(lib.uffdb_keeper_start(keeper), "cannot start a keeper")
    return Keeper(ours)


def take_from_keeper(path: Path) -> Held | None:
    """Take over what the keeper at ``path`` holds; None when there is none.

    Raises TargetBusyError when it does not hand it over, and ControlError for anything else.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_PATIENCE_S)
        connection.connect(str(path))
        _, fds, _, _ = socket.recv_fds(connection, 1, max(_COUNTS))
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        connection.close()
        return None
    except TimeoutError:
        connection.close()
        raise TargetBusyError(
            f"the keeper at {path} does not answer",
            why="a manager holds what it keeps",
            hint="end that manager, and attach again",
        ) from None
    except OSError as error:
        connection.close()
        raise ControlError(
            f"cannot talk to the keeper at {path}", why=error.strerror or "", errno=error.errno
        ) from error
    if len(fds) not in _COUNTS:
        connection.close()
        for fd in fds:
            os.close(fd)
        return None  # it ended just now
    connection.settimeout(0)
    monitor = fds.pop() if (len(fds) - _NR_FDS) % NR_TRACE_FDS else None
    return Held(Keeper(connection), fds[0], fds[1], tuple(fds[_NR_FDS:]), monitor)
