# SPDX-License-Identifier: GPL-2.0-or-later
"""A process between us and libvirt: QMP on one side, libvirt's calls on the other.

``python -m uffdballoon.vmm.qemu.libvirt_bridge LISTENER PID UUID URI`` serves one client at a
time on the listening socket that it inherits, as QEMU does. It goes into the background once
libvirt has given it the monitor, and says why not on standard output.

A libvirt that restarts is a monitor that hangs up: the client connects again when it is back. The
bridge ends with the target, when its client hangs up, and when none has come for a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from uffdballoon.errors import QmpError, UffdballoonError

if TYPE_CHECKING:
    from collections.abc import Sequence

ORPHAN_S = 60.0  # a client tries again every few seconds
_AGAIN_S = 1.0
_CHUNK_BYTES = 64 << 10
_MOST_BYTES = 1 << 20  # of a command
_MOST_FILES = 4  # with a command
_RESTART = b"\xff"  # see qmp.py
_VERSION = {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": "by libvirt"}


class Work(NamedTuple):
    """A command as it came, and the fds that came with it, which are ours."""

    client: Client
    line: bytes
    files: list[int]


class Linked(Protocol):
    """libvirt, as libvirt_link has it."""

    def connect(self) -> None: ...

    def ask(self, command: dict[str, Any], files: Sequence[int] = ()) -> dict[str, Any]: ...


class Client:
    """A connection that events and answers are written to, a line at a time."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.was_hung_up = False
        self._writing = threading.Lock()
        self._rest = b""

    def say(self, message: dict[str, Any]) -> None:
        """Write a message; a client that is gone is found when it is read."""
        line = json.dumps(message).encode() + b"\r\n"  # spaced as QEMU does: relay.c
        with self._writing, contextlib.suppress(OSError):
            self.socket.sendall(line)

    def read(self) -> list[Work] | None:
        """Return the commands that came; None when it hung up.

        What fds are sent with ends a read of the socket (unix(7)), so that its last line is the
        command that takes them.
        """
        try:
            data, files, _, _ = socket.recv_fds(self.socket, _CHUNK_BYTES, _MOST_FILES)
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).rpartition(_RESTART)[2].split(b"\n")
        if not data or len(self._rest) > _MOST_BYTES or (files and not lines):
            _close_all(files)
            return None
        return [Work(self, line, []) for line in lines[:-1]] + [
            Work(self, line, files) for line in lines[-1:]
        ]

    def hang_up(self) -> None:
        """End it from our side; whoever reads it sees the end."""
        self.was_hung_up = True
        with self._writing, contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Bridge:
    """Serves clients on ``listener`` with what a link tells; run() until it has to end.

    The link is set by start(), and used by one thread: what libvirt does not answer must not
    keep anybody from seeing that the client hung up.
    """

    def __init__(self, listener: socket.socket, ends: int) -> None:
        """End when the fd ``ends`` can be read: a pidfd of the target."""
        self._listener = listener
        self._ends = ends
        self._client: Client | None = None
        self._linked = True
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()

    def start(self, link: Linked) -> None:
        """Begin to ask a link that is connected."""
        threading.Thread(target=self._ask, args=(link,), name="asker", daemon=True).start()

    def on_event(self, event: dict[str, Any]) -> None:
        """Hand an event on, in whose thread it may be."""
        client = self._client
        if client is not None:
            client.say(event)

    def on_lost(self) -> None:
        """Hang up, and have the link connected again."""
        self._hang_up()
        self._work.put(None)

    def run(self, orphan_s: float = ORPHAN_S) -> None:
        """Serve until the client hangs up, the target ends, or none has come for so long."""
        until = time.monotonic() + orphan_s
        while True:
            client = self._client
            waited: list[socket.socket | int] = [self._listener, self._ends]
            if client is not None:
                waited.append(client.socket)
            left_s = None if client is not None else max(0.0, until - time.monotonic())
            ready = select.select(waited, [], [], left_s)[0]
            if self._ends in ready or not ready:
                return
            if client is not None and client.socket in ready and not self._serve(client):
                client.socket.close()
                self._client = None
                if not client.was_hung_up:
                    return
                until = time.monotonic() + orphan_s
            if self._listener in ready:
                until = time.monotonic() + orphan_s
                self._take(self._listener.accept()[0])

    def _take(self, connected: socket.socket) -> None:
        """Greet a client of our own user; there is one at a time, and none without libvirt."""
        owner = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if owner[1] != os.geteuid() or self._client is not None or not self._linked:
            connected.close()
            return
        client = Client(connected)
        client.say({"QMP": {"version": _VERSION, "capabilities": []}})
        self._client = client

    def _serve(self, client: Client) -> bool:
        commands = client.read()
        for work in commands or ():
            if work.line.strip():
                self._work.put(work)
            else:
                _close_all(work.files)
        return commands is not None

    def _ask(self, link: Linked) -> None:
        while True:
            work = self._work.get()
            if work is None:
                self._link_again(link)
            else:
                work.client.say(_answer(link, work))
                _close_all(work.files)

    def _link_again(self, link: Linked) -> None:
        self._hang_up()
        while not self._linked:
            try:
                link.connect()
            except QmpError:
                time.sleep(_AGAIN_S)
            else:
                self._linked = True

    def _hang_up(self) -> None:
        self._linked = False
        client = self._client
        if client is not None:
            client.hang_up()


def _close_all(files: Sequence[int]) -> None:
    for fd in files:
        os.close(fd)


def _answer(link: Linked, work: Work) -> dict[str, Any]:
    try:
        command = json.loads(work.line)
    except ValueError:
        command = None
    if not isinstance(command, dict):
        return {"error": {"class": "GenericError", "desc": "that is no command"}}
    number = command.pop("id", None)
    negotiates = command.get("execute") == "qmp_capabilities"
    answer = {"return": {}} if negotiates else link.ask(command, work.files)
    return answer if number is None else answer | {"id": number}


def main(listener_fd: int, pid: int, uuid: str, uri: str) -> None:
    """Be a bridge, and return in the process that began it once it is one, or cannot be."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        with open(read, encoding="utf-8") as told:  # noqa: PTH123 - a pipe
            sys.stdout.write(told.read())
        return
    os.setsid()
    with open(write, "w", encoding="utf-8") as tell:  # noqa: PTH123 - a pipe
        bridge, why = _begin(listener_fd, pid, uuid, uri)
        tell.write(why)
    if bridge is not None:
        _leave_the_terminal()
        bridge.run()
    os._exit(0)  # whatever libvirt's calls still wait for


def _begin(listener_fd: int, pid: int, uuid: str, uri: str) -> tuple[Bridge | None, str]:
    """Connect to libvirt; return the bridge, or what is lacking as a line for a person."""
    try:
        from uffdballoon.vmm.qemu.libvirt_link import Link, run_events  # noqa: PLC0415 - an extra

        run_events()
        bridge = Bridge(socket.socket(fileno=listener_fd), os.pidfd_open(pid))
        link = Link(uri, uuid, pid, on_event=bridge.on_event, on_lost=bridge.on_lost)
        link.connect()
    except UffdballoonError as error:
        return None, error.why
    except (ImportError, OSError) as error:
        return None, str(error)
    bridge.start(link)
    return bridge, ""


def _leave_the_terminal() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)
    os.close(nothing)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
