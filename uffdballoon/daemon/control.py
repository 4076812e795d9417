# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: who may talk, and what a bad client can cost (nothing but itself).

All sockets are non-blocking and all buffers bounded. A client that does not
read is dropped.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from uffdballoon.daemon.protocol import (
    MAX_ANSWER_BYTES,
    MAX_LINE_BYTES,
    decode_request,
    encode,
    error_message,
    socket_path,
)
from uffdballoon.errors import (
    ControlError,
    PermissionDeniedError,
    TargetBusyError,
    UffdballoonError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from uffdballoon.model.records.events import Event

_MAX_FOLLOWER_BYTES = 1 << 20
_RECENT_EVENTS = 1000
_READ_BYTES = 16 << 10


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.to_send = bytearray()
        self.follows = False
        self.ends_when_sent = False


class ControlServer:
    """Listens for verbs on behalf of a selectors loop."""

    def __init__(
        self,
        pid: int,
        selector: selectors.BaseSelector,
        handle: Callable[[dict[str, Any]], object],
    ) -> None:
        self._selector = selector
        self._handle = handle
        self._clients: set[_Client] = set()
        self.recent: deque[Event] = deque(maxlen=_RECENT_EVENTS)
        self.followers_dropped = 0
        self.path = socket_path(pid)
        self._listener = _listen(pid)
        selector.register(self._listener, selectors.EVENT_READ, lambda _: self._accept())

    def close(self) -> None:
        for client in list(self._clients):
            self._flush_last(client)
            self._drop(client)
        self._selector.unregister(self._listener)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def publish(self, event: Event) -> None:
        """Tell an event to those who follow; one that reads too slowly is dropped."""
        self.recent.append(event)
        line = encode(event)
        for client in [client for client in self._clients if client.follows]:
            if len(client.to_send) + len(line) > _MAX_FOLLOWER_BYTES:
                self.followers_dropped += 1
                self._drop(client)
                continue
            client.to_send += line
            self._watch(client)

    def _accept(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:
            return  # it hung up again, or we are out of fds: those who are there go on
        connection.settimeout(0)
        client = _Client(connection)
        self._clients.add(client)
        self._selector.register(
            connection, selectors.EVENT_READ, lambda mask: self._serve(client, mask)
        )
        if _peer_uid(connection) not in (0, os.geteuid()):
            refusal = PermissionDeniedError(
                "not allowed", why="another user's manager", hint="run as root"
            )
            self._answer(client, error_message(refusal), last=True)

    def _serve(self, client: _Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                data = client.connection.recv(_READ_BYTES)
                if not data:
                    self._drop(client)
                    return
                client.received += data
                self._serve_lines(client)
            if mask & selectors.EVENT_WRITE and client in self._clients:
                self._send(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _serve_lines(self, client: _Client) -> None:
        while client in self._clients and b"\n" in client.received and not client.ends_when_sent:
            line, _, rest = bytes(client.received).partition(b"\n")
            client.received[:] = rest
            self._serve_line(client, line)
        if len(client.received) > MAX_LINE_BYTES:
            error = ControlError("that request is too long", why=f"over {MAX_LINE_BYTES} bytes")
            self._answer(client, error_message(error), last=True)

    def _serve_line(self, client: _Client, line: bytes) -> None:
        try:
            message = decode_request(line)
            if message["verb"] == "follow":
                client.follows = True
                result: object = None
            else:
                result = self._handle(message)
        except UffdballoonError as error:
            self._answer(client, error_message(error))
        else:
            self._answer(client, {"ok": True, "result": result})

    def _answer(self, client: _Client, message: dict[str, object], *, last: bool = False) -> None:
        if client not in self._clients:
            return  # it follows too slowly, and was dropped over an event of meanwhile
        line = encode(message)
        if len(client.to_send) + len(line) > MAX_ANSWER_BYTES:
            self._drop(client)
            return
        client.to_send += line
        client.ends_when_sent = client.ends_when_sent or last
        self._watch(client)

    def _send(self, client: _Client) -> None:
        sent = client.connection.send(client.to_send)
        del client.to_send[:sent]
        if not client.to_send:
            if client.ends_when_sent:
                self._drop(client)
            else:
                self._watch(client)

    def _watch(self, client: _Client) -> None:
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
        self._selector.modify(client.connection, mask, lambda event: self._serve(client, event))

    def _flush_last(self, client: _Client) -> None:
        """Send what fits without waiting: the answer to `detach` is among it."""
        with contextlib.suppress(OSError):
            client.connection.send(client.to_send)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.connection)
        client.connection.close()


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


def _listen(pid: int) -> socket.socket:
    """Listen where the verbs look; replace the socket of a manager that died."""
    _remove_stale(socket_path(pid), pid)
    listener = listen_at(socket_path(pid), pid)
    listener.settimeout(0)
    return listener


def listen_at(path: Path, pid: int) -> socket.socket:
    """Listen in a directory that is ours alone, by a socket of mode 0600."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.parent.stat()
        if owner.st_uid != os.geteuid() or owner.st_mode & 0o077:
            raise PermissionDeniedError(
                f"{path.parent} is not ours alone",
                why="others could put a socket of theirs there",
                hint=f"remove it, or chmod 700 {path.parent}",
            )
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ControlError(
            f"cannot listen at {path}",
            why=error.strerror or str(error),
            hint="set XDG_RUNTIME_DIR to a directory of your own",
            pid=pid,
        ) from error
    except UffdballoonError:
        listener.close()
        raise
    return listener


def refuse_if_attached(pid: int) -> None:
    """Raise TargetBusyError when a manager of that process is alive."""
    _remove_stale(socket_path(pid), pid)


def is_attached(pid: int) -> bool:
    """Tell whether a manager of that process is alive; a dead one's socket is removed."""
    try:
        refuse_if_attached(pid)
    except TargetBusyError:
        return True
    return False


def _remove_stale(path: Path, pid: int) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, PermissionError):
            return  # nobody, or not ours to ask: binding will tell
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    manager = struct.unpack("3i", credentials)[0]
    raise TargetBusyError(
        f"process {pid} is attached already",
        why=f"its manager is process {manager}",
        hint=f"use it, or end it with: uffdballoon detach {pid}",
        pid=pid,
    )
