# SPDX-License-Identifier: GPL-2.0-or-later
"""The QMP sockets of a QEMU, found without connecting: to look takes nobody's place.

QEMU serves one client a monitor, and stops accepting others meanwhile (chardev/char-socket.c:
tcp_chr_new_client()). So a connection that it has accepted is the one client.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import UffdballoonError
from uffdballoon.model.records.target import MonitorOwner, MonitorSocket, MonitorState
from uffdballoon.vmm.qemu.options import parse_options, split_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from uffdballoon.target.process import Target

# include/uapi/linux/net.h: __SO_ACCEPTCON, SS_CONNECTED, as net/unix/af_unix.c prints them
_LISTENS = 1 << 16
_CONNECTED = 3
_FIELDS = 8  # of a line of /proc/net/unix; the last is a path, which may hold blanks
_OWNERS = {
    # libvirt, src/qemu/qemu_conf.c: libDir; qemu_domain.c: qemuDomainSetPrivatePaths()
    MonitorOwner.LIBVIRT: re.compile(r".*/domain-[^/]+/monitor\.sock", re.DOTALL),
    # Proxmox, PVE/QemuServer/Helpers.pm: qmp_socket()
    MonitorOwner.PROXMOX: re.compile(r"(?:/var)?/run/qemu-server/[0-9]+\.qmp"),
    # Ganeti, lib/hypervisor/hv_kvm: _InstanceQmpMonitor()
    MonitorOwner.GANETI: re.compile(r".*/ganeti/kvm-hypervisor/ctrl/[^/]+\.qmp", re.DOTALL),
}


class UnixSocket(NamedTuple):
    """A line of /proc/net/unix that has a path."""

    flags: int
    state: int
    inode: int
    path: str


def parse_unix_sockets(text: str) -> list[UnixSocket]:
    """Read /proc/net/unix (proc_pid_net(5)); a line of another shape is passed over."""
    found = []
    for line in text.split("\n"):
        fields = line.split(maxsplit=_FIELDS - 1)
        if len(fields) < _FIELDS:
            continue
        try:
            flags, state = int(fields[3], 16), int(fields[5], 16)
            found.append(UnixSocket(flags, state, int(fields[6]), fields[7]))
        except ValueError:
            continue
    return found


def named_sockets(cmdline: Sequence[str]) -> list[str | int]:
    """List the Unix sockets on which the command line has QEMU serve QMP: paths, and fds."""
    chardevs: dict[str, Mapping[str, str]] = {}
    served: list[Mapping[str, str]] = []
    asked: list[str] = []
    for option in parse_options(cmdline[1:]):
        if option.name in {"qmp", "qmp-pretty"} and option.text.startswith("unix:"):
            served.append(split_keys(option.text.removeprefix("unix:"), "path"))
        elif option.name == "chardev" and option.values.get("backend") == "socket":
            chardevs[option.values.get("id", "")] = option.values
        elif option.name == "mon" and option.values.get("mode") == "control":
            asked.append(option.values.get("chardev", ""))
        elif option.name in {"qmp", "qmp-pretty"} and option.text.startswith("chardev:"):
            asked.append(option.text.removeprefix("chardev:"))
    served += [chardevs[name] for name in asked if name in chardevs]
    return [found for keys in served if (found := _socket_of(keys)) is not None]


def _socket_of(keys: Mapping[str, str]) -> str | int | None:
    """Say what a chardev listens on; None: it connects itself, or is no Unix socket."""
    if keys.get("server") not in {"on", "yes", "true", "y"} or keys.get("abstract") == "on":
        return None
    if keys.get("fd", "").isdecimal():
        return int(keys["fd"])
    return keys.get("path") or None


def judge_sockets(
    named: Iterable[str | int], links: Mapping[int, str] | None, sockets: Sequence[UnixSocket]
) -> list[MonitorSocket]:
    """Say of each named socket whether it is free; of one that is an fd, where it is.

    ``links`` are the target's fds; without them, who holds what is not known. A socket that the
    target does not listen on is left out.
    """
    held = None if links is None else set(links.values())
    by_inode = {f"socket:[{socket.inode}]": socket.path for socket in sockets}
    found = []
    for name in named:
        path = by_inode.get((links or {}).get(name, "")) if isinstance(name, int) else name
        if path is None:
            continue
        ours = [socket for socket in sockets if socket.path == path]
        if held is None:
            state = MonitorState.UNKNOWN
        else:
            ours = [socket for socket in ours if f"socket:[{socket.inode}]" in held]
            is_held = any(socket.state == _CONNECTED for socket in ours)
            state = MonitorState.HELD if is_held else MonitorState.FREE
        if any(socket.flags & _LISTENS for socket in ours):
            found.append(MonitorSocket(path=path, state=state, owner=_owner_of(path)))
    return found


def find_monitors(target: Target) -> list[MonitorSocket]:
    """Find the QMP sockets that a target listens on; none where that cannot be looked at."""
    named = named_sockets(target.cmdline)
    if not named:
        return []
    try:
        links = target.fds()
    except UffdballoonError:
        links = None
    try:
        # In the target's own network namespace, which is where Unix sockets are listed.
        text = Path(f"/proc/{target.pid}/net/unix").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return []
    return judge_sockets(named, links, parse_unix_sockets(text))


def _owner_of(path: str) -> MonitorOwner | None:
    return next((owner for owner, shape in _OWNERS.items() if shape.fullmatch(path)), None)
