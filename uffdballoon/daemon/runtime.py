# SPDX-License-Identifier: GPL-2.0-or-later
"""Where managers and keepers listen, and which manager a process has.

Root's are in one place, whatever a login, sudo or cron says of XDG_RUNTIME_DIR. That there
is one manager a target is not told by a path: see target/claim.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import ControlError, PermissionDeniedError
from uffdballoon.target.claim import attached_already, claimant_of, claimants_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_UCRED = struct.Struct("3i")  # struct ucred, unix(7)
_DIRECTORY = "uffdballoon"
_ROOTS = Path("/run") / _DIRECTORY
_MANAGERS, _KEEPERS = _SUFFIXES = (".sock", ".hold")


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket, as the kernel tells it (SO_PEERCRED)."""

    pid: int
    uid: int


def runtime_directory() -> Path:
    """Return where our own managers listen."""
    uid = os.geteuid()
    if uid == 0:
        return _ROOTS
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}") / _DIRECTORY


def socket_path(pid: int) -> Path:
    """Return where the manager of process ``pid`` listens."""
    return runtime_directory() / f"{pid}{_MANAGERS}"


def keeper_path(pid: int) -> Path:
    """Return where the keeper of process ``pid`` listens."""
    return socket_path(pid).with_suffix(_KEEPERS)


def peer_of(connection: socket.socket) -> Peer:
    """Ask who connected, or who listened when we did."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(credentials)
    return Peer(pid, uid)


def manager_of(pid: int) -> int | None:
    """Return the pid of the manager of process ``pid``; a dead one's socket is removed.

    listen_at() gives a socket its name once it listens: one that refuses is a dead one's.
    """
    path = socket_path(pid)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return None
        except BlockingIOError:  # others wait for it
            claimant = claimant_of(pid)
            return claimant.pid if claimant is not None else None
        except OSError:
            return None  # nobody, or not ours to ask: binding will tell
        return peer_of(probe).pid


def attached_pids() -> list[int]:
    """List the processes that managers of ours are attached to."""
    try:
        paths = list(runtime_directory().iterdir())
    except OSError:
        return []
    named = (int(p.stem) for p in paths if p.suffix == _MANAGERS and p.stem.isdecimal())
    return sorted(pid for pid in named if claimant_of(pid) is not None)


def remove_dead_sockets() -> None:
    """Remove the sockets of managers that were killed, and of keepers whose target has ended.

    Nobody who lives is connected to: a manager would be woken, and a keeper would hand over what
    it holds.
    """
    with contextlib.suppress(OSError):
        paths = [
            path
            for path in runtime_directory().iterdir()
            if path.suffix in _SUFFIXES and path.stem.isdecimal()
        ]
        managers = [int(path.stem) for path in paths if path.suffix == _MANAGERS]
        for pid in set(managers) - claimants_of(managers).keys():
            manager_of(pid)
        for path in paths:
            if path.suffix == _KEEPERS and not Path(f"/proc/{path.stem}").exists():
                path.unlink(missing_ok=True)


def refuse_if_attached(pid: int) -> None:
    """Raise TargetBusyError when a manager of that process is alive."""
    manager = manager_of(pid)
    if manager is not None:
        raise attached_already(pid, manager)


def listen_for_verbs(pid: int) -> socket.socket:
    """Listen where the verbs look; replace the socket of a manager that died."""
    refuse_if_attached(pid)
    listener = listen_at(socket_path(pid), pid)
    listener.settimeout(0)
    return listener


def refuse_unless_listening_can_be(pid: int) -> None:
    """Raise ControlError or PermissionDeniedError when listen_at() would, before anything is done.

    ``pid`` is for the error.
    """
    with _naming_the_directory(pid):
        _make_ours(runtime_directory())


def listen_at(path: Path, pid: int) -> socket.socket:
    """Listen in a directory that is ours alone, by a socket of mode 0600.

    Raises ControlError and PermissionDeniedError; ``pid`` is for them.
    """
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        with _naming_the_directory(pid):
            _make_ours(path.parent)
            unnamed = path.with_suffix(f"{path.suffix}.{os.getpid()}")
            unnamed.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                listener.bind(str(unnamed))
            finally:
                os.umask(before)
            listener.listen()
            unnamed.rename(path)
        undo.pop_all()
    return listener


@contextlib.contextmanager
def _naming_the_directory(pid: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ControlError(
            f"cannot listen in {runtime_directory()}",
            why=error.strerror or str(error),
            hint="set XDG_RUNTIME_DIR to a directory of your own" if os.geteuid() else "",
            pid=pid,
        ) from error


def _make_ours(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = directory.stat()
    if owner.st_uid != os.geteuid() or owner.st_mode & 0o077:
        raise PermissionDeniedError(
            f"{directory} is not ours alone",
            why="others could put a socket of theirs there",
            hint=f"remove it, or chmod 700 {directory}",
        )
