# SPDX-License-Identifier: GPL-2.0-or-later
"""Where managers and keepers listen, and which manager a process has."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from uffdballoon.errors import (
    ControlError,
    PermissionDeniedError,
    TargetBusyError,
)

_UCRED = struct.Struct("3i")  # struct ucred, unix(7)


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket, as the kernel tells it (SO_PEERCRED)."""

    pid: int
    uid: int


def socket_path(pid: int) -> Path:
    """Return where the manager of process ``pid`` listens."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        runtime = "/run" if os.geteuid() == 0 else f"/run/user/{os.geteuid()}"
    return Path(runtime) / "uffdballoon" / f"{pid}.sock"


def keeper_path(pid: int) -> Path:
    """Return where the keeper of process ``pid`` listens."""
    return socket_path(pid).with_suffix(".hold")


def peer_of(connection: socket.socket) -> Peer:
    """Ask who connected, or who listened when we did."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(credentials)
    return Peer(pid, uid)


def manager_of(pid: int) -> int | None:
    """Return the pid of the manager of process ``pid``; a dead one's socket is removed."""
    path = socket_path(pid)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, PermissionError):
            return None  # nobody, or not ours to ask: binding will tell
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return None
        return peer_of(probe).pid


def refuse_if_attached(pid: int) -> None:
    """Raise TargetBusyError when a manager of that process is alive."""
    manager = manager_of(pid)
    if manager is not None:
        raise TargetBusyError(
            f"process {pid} is attached already",
            why=f"its manager is process {manager}",
            hint=f"use it, or end it with: uffdballoon detach {pid}",
            pid=pid,
        )


def listen_for_verbs(pid: int) -> socket.socket:
    """Listen where the verbs look; replace the socket of a manager that died."""
    refuse_if_attached(pid)
    listener = listen_at(socket_path(pid), pid)
    listener.settimeout(0)
    return listener


def listen_at(path: Path, pid: int) -> socket.socket:
    """Listen in a directory that is ours alone, by a socket of mode 0600."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_unless_ours(path.parent)
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen()
        except OSError as error:
            raise ControlError(
                f"cannot listen at {path}",
                why=error.strerror or str(error),
                hint="set XDG_RUNTIME_DIR to a directory of your own",
                pid=pid,
            ) from error
        undo.pop_all()
    return listener


def _refuse_unless_ours(directory: Path) -> None:
    owner = directory.stat()
    if owner.st_uid != os.geteuid() or owner.st_mode & 0o077:
        raise PermissionDeniedError(
            f"{directory} is not ours alone",
            why="others could put a socket of theirs there",
            hint=f"remove it, or chmod 700 {directory}",
        )
