# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect to the monitor's socket of one process, and of no other.

A wrong path must never lead to another VM's memory. Looked at is the peer of the very connection
that is used then: QEMU serves one client at a time, and would greet whoever connects first.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from uffdballoon.errors import MonitorBusyError, QmpError
from uffdballoon.target.readiness import thread_state

BRIDGES = "@uffdballoon/libvirt/"
"""What a path begins with that is no file but the abstract name of a bridge of ours to libvirt."""


def reach(path: str, pid: int, timeout_s: float) -> tuple[socket.socket, str]:
    """Connect to the monitor at ``path``, as given or in the target's own root; return the path.

    In a mount namespace of its own, or a chroot, QEMU may know a file by a path
    that is none here. Raises QmpError, and MonitorBusyError when too many wait there already.
    """
    try:
        return connect_to(path, pid, timeout_s), path
    except MonitorBusyError:
        raise
    except QmpError as here:
        if not path.startswith("/"):
            raise
        inside = f"/proc/{pid}/root{path}"
        try:
            return connect_to(inside, pid, timeout_s), inside
        except MonitorBusyError:
            raise
        except QmpError as there:
            here.why += f"; nor in QEMU's own root, {inside}: {there.why}"
            raise here from None


def connect_to(path: str, pid: int, timeout_s: float) -> socket.socket:
    """Connect to a socket that the process serves; raise QmpError when it does not."""
    connected = socket.socket(socket.AF_UNIX)
    is_bridge = path.startswith(BRIDGES)
    try:
        connected.settimeout(timeout_s)
        connected.connect("\0" + path[1:] if is_bridge else path)
        if is_bridge:
            _refuse_another_user(connected, path, pid)
        else:
            refuse_unless_served_by(connected, path, pid)
    except (BlockingIOError, TimeoutError):
        connected.close()
        raise busy_error(path, pid) from None  # even its queue of those who wait is full
    except (OSError, ValueError) as error:
        connected.close()
        raise unreachable_error(
            path, pid, str(getattr(error, "strerror", None) or error)
        ) from error
    except BaseException:
        connected.close()
        raise
    return connected


def refuse_unless_served_by(connected: socket.socket, path: str, pid: int) -> None:
    """Raise QmpError unless the process serves the other end of a connection to ``path``."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    owner, _, _ = struct.unpack("3i", credentials)
    # A socket that was made by whoever started QEMU carries that process's pid; since QEMU 6.0
    # only until QEMU has it listen again (util/qemu-sockets.c: socket_listen()).
    if owner not in (pid, 0) and not _holds_socket(pid, path):
        raise QmpError(
            f"the monitor at {path} is not that of process {pid}",
            why=f"process {owner} listens there",
            hint="give the -qmp socket of this very QEMU",
            pid=pid,
        )


def _refuse_another_user(connected: socket.socket, path: str, pid: int) -> None:
    """Raise QmpError for a bridge that is not ours: anybody may listen at such a name.

    It has looked itself whose monitor it gives (libvirt_link.py), and the name has the pid.
    """
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in (os.geteuid(), 0):
        raise unreachable_error(path, pid, f"user {uid} listens there")


def unreachable_error(path: str, pid: int, why: str) -> QmpError:
    return QmpError(
        f"cannot connect to the monitor at {path}",
        why=why,
        hint="give the socket of -qmp unix:PATH,server=on,wait=off",
        pid=pid,
    )


def busy_error(path: str, pid: int) -> MonitorBusyError:
    if thread_state(pid, pid).letter == "T":
        return MonitorBusyError(
            f"the monitor at {path} does not answer",
            why=f"process {pid} is stopped by job control (SIGSTOP, Ctrl-Z)",
            hint=f"let it go on (kill -CONT {pid}), or leave --qmp out",
            pid=pid,
        )
    return MonitorBusyError(
        f"the monitor at {path} does not answer",
        why="another client (libvirt?) is connected to it, and it serves one at a time",
        hint="start QEMU with a second -qmp socket, or leave --qmp out",
        pid=pid,
    )


def path_of_peer(connection: socket.socket) -> str | None:
    """Return the path that a connection's other end is bound to; None without one."""
    name = connection.getpeername()
    if isinstance(name, bytes) and name.startswith(b"\0"):
        return "@" + name[1:].decode(errors="replace")
    return name if isinstance(name, str) and name.startswith("/") else None


def _holds_socket(pid: int, path: str) -> bool:
    """Tell whether the process holds a socket bound to that path."""
    wanted = str(Path(path).resolve())
    try:
        inodes = {
            fields[6]
            for fields in map(str.split, Path(f"/proc/{pid}/net/unix").read_text().splitlines())
            if any(str(Path(name).resolve()) == wanted for name in fields[7:8])
        }
        links = {_link_of(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return False
    return any(f"socket:[{inode}]" in links for inode in inodes)


def _link_of(fd: Path) -> str:
    """Read what an fd is; empty when it was closed meanwhile, as those of clients are."""
    try:
        return str(fd.readlink())
    except FileNotFoundError:
        return ""
