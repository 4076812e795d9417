# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of libvirt: how one is known by its command line, and how its monitor is reached."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from uffdballoon.errors import MonitorBusyError, UsageError
from uffdballoon.host.libvirt_binding import INSTALL, lacking_modules
from uffdballoon.vmm.qemu.peer import BRIDGES, path_of_peer

if TYPE_CHECKING:
    from collections.abc import Sequence

WORD = "libvirt"
"""What stands for the monitor's path when libvirt is to be asked where it is by default."""
_URI = ("qemu:", "qemu+")
_SYSTEM = "/var/lib/libvirt/qemu/"
_MONITOR = "id=charmonitor"  # libvirt, src/qemu/qemu_command.c: its name for its monitor
_PATIENCE_S = 30.0
_LATE_NS = 50_000_000  # on an idle host libvirt hands an event on in a millisecond or two


def is_by_libvirt(path: str | None) -> bool:
    """Tell whether a monitor is asked for by libvirt: by its word, or an URI of libvirt's."""
    return path is not None and (path == WORD or path.startswith(_URI))


def is_domain(cmdline: Sequence[str]) -> bool:
    """Tell whether libvirt has started a QEMU, and holds its monitor."""
    return uuid_of(cmdline) is not None and any(_MONITOR in word for word in cmdline)


def uuid_of(cmdline: Sequence[str]) -> str | None:
    """Return what -uuid has on a command line."""
    for word, value in itertools.pairwise(cmdline):
        if word == "-uuid":
            return value
    return None


def uri_of(pid: int, cmdline: Sequence[str]) -> str:
    """Return where the libvirt of a domain is, as virsh would find it."""
    if asked := os.environ.get("LIBVIRT_DEFAULT_URI"):
        return asked
    if any(_SYSTEM in word for word in cmdline):
        return "qemu:///system"
    owner = Path(f"/proc/{pid}").stat().st_uid
    if owner == os.geteuid():
        return "qemu:///session"
    directory = Path(f"/run/user/{owner}/libvirt")
    names = ("virtqemud-sock", "libvirt-sock")
    sockets = [directory / name for name in names if (directory / name).exists()]
    return f"qemu+unix:///session?socket={sockets[0]}" if sockets else "qemu:///session"


def delay_ns(connection_fd: int) -> int:
    """Return how late a monitor's connection may tell of a reset: by libvirt, or 0."""
    with socket.socket(fileno=os.dup(connection_fd)) as connection:
        by = path_of_peer(connection)
    return _LATE_NS if by is not None and by.startswith(BRIDGES) else 0


def begin_bridge(pid: int, path: str) -> str:
    """Begin a bridge to libvirt at ``path``, its word or an URI; return a path to connect to.

    Raises MonitorBusyError when libvirt does not give the monitor, and UsageError for a
    process that is no domain, or without the binding.
    """
    cmdline = _cmdline_of(pid)
    uuid = uuid_of(cmdline)
    if uuid is None or not is_domain(cmdline):
        raise UsageError(
            f"process {pid} is no domain of libvirt",
            why="its command line has no monitor of libvirt's",
            hint="give the path of a QMP socket, or leave --qmp out",
            pid=pid,
        )
    if lacking_modules():
        raise UsageError(
            "libvirt cannot be asked for the monitor",
            why="its Python binding is not installed",
            hint=INSTALL,
            pid=pid,
        )
    uri = uri_of(pid, cmdline) if path == WORD else path
    name = f"{BRIDGES}{pid}/{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name[1:])
        listener.listen()
        why = _begin(listener, pid, uuid, uri)
    if why:
        raise MonitorBusyError(
            f"libvirt does not give the monitor of process {pid}",
            why=f"{uri}: {why}",
            hint="give an URI of its libvirt, such as --qmp qemu:///system, as virsh takes it",
            pid=pid,
        )
    return name


def _begin(listener: socket.socket, pid: int, uuid: str, uri: str) -> str:
    """Start the process, which leaves us; return why it cannot be, or nothing."""
    command = [sys.executable, "-m", "uffdballoon.vmm.qemu.libvirt_bridge"]
    command += [str(listener.fileno()), str(pid), uuid, uri]
    try:
        done = subprocess.run(
            command,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PATIENCE_S:g} s"
    if done.returncode:
        return done.stderr.strip().rpartition("\n")[2] or f"the bridge ended: {done.returncode}"
    return done.stdout.strip()


def _cmdline_of(pid: int) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []
