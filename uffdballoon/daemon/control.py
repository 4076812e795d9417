# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: who may talk, and what a bad client can cost (nothing but itself).

All sockets are non-blocking and all buffers bounded. A follower that does not read
misses events, and is told how many; a client that does not read its answer is dropped.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from uffdballoon.daemon.loop import Loop, Ready
from uffdballoon.daemon.protocol import (
    MAX_ANSWER_BYTES,
    MAX_LINE_BYTES,
    PROGRESS,
    decode_request,
    encode,
    error_message,
)
from uffdballoon.daemon.runtime import listen_for_verbs, peer_of, socket_path
from uffdballoon.errors import ControlError, PermissionDeniedError, UffdballoonError
from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uffdballoon.model.origin import Origin
    from uffdballoon.model.records.events import Event

_MAX_FOLLOWER_BYTES = 4 << 20
_MAX_CLIENTS = 64
_RECENT_EVENTS = 1000
_READ_BYTES = 16 << 10
_PROGRESS_S = 1.0
_ACCEPT_AGAIN_S = 1.0


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.fd = connection.fileno()
        self.received = bytearray()
        self.to_send = bytearray()
        self.follows = False
        self.missed = 0
        self.waits = False  # for a job; the verbs that it sent after that one wait as well
        self.wants_progress = False
        self.ends_when_sent = False

    @property
    def is_idle(self) -> bool:
        return not (self.follows or self.waits or self.to_send)


class ControlServer:
    """Listens for verbs on behalf of a loop.

    ``handle`` returns the result of a verb, or a job (model.job) that will.
    """

    def __init__(
        self, origin: Origin, loop: Loop, handle: Callable[[dict[str, Any]], object]
    ) -> None:
        self._origin = origin
        self._loop = loop
        self._handle = handle
        self._clients: dict[_Client, None] = {}  # the one that came first is the first
        self.recent: deque[Event] = deque(maxlen=_RECENT_EVENTS)
        self.events_missed = 0
        self.path = socket_path(origin.pid)
        self._listener = listen_for_verbs(origin.pid)
        self._progress = loop.timer("progress", self._tell_progress)
        loop.watch("control socket", self._listener.fileno(), lambda _: self._accept())

    def close(self) -> None:
        for client in list(self._clients):
            self._flush_last(client)
            self._drop(client)
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def publish(self, event: Event) -> None:
        """Tell an event to those who follow; one that reads too slowly is told what it missed."""
        self.recent.append(event)
        line: bytes | None = None
        for client in self._clients:
            if client.follows:
                line = line or encode(event)
                self._tell(client, line)

    def _tell(self, client: _Client, line: bytes) -> None:
        if len(client.to_send) + len(line) > _MAX_FOLLOWER_BYTES:
            client.missed += 1
            self.events_missed += 1
            return
        client.to_send += line
        self._watch(client)

    def _tell_missed(self, client: _Client) -> None:
        """Say where in its events others are missing, once there is room again."""
        if client.missed and len(client.to_send) < _MAX_FOLLOWER_BYTES // 2:
            why = f"{client.missed} event(s) came faster than they were read"
            client.to_send += encode(
                self._origin.mark(notice(EventKind.MISSED, why, count=client.missed))
            )
            client.missed = 0

    def _accept(self) -> bool:
        try:
            connection, _address = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError:  # it hung up again, or we are out of fds: those who are there go on
            self._loop.leave_alone(self._listener.fileno(), _ACCEPT_AGAIN_S)
            return False
        connection.settimeout(0)
        client = _Client(connection)
        self._make_room()
        self._clients[client] = None
        self._loop.watch("client", client.fd, lambda ready: self._serve(client, ready))
        if len(self._clients) > _MAX_CLIENTS:
            refusal = ControlError(
                "this manager serves nobody else now",
                why=f"{_MAX_CLIENTS} clients follow it, or wait for an answer",
                hint="end some of them",
            )
            self._answer(client, error_message(refusal), last=True)
        elif peer_of(connection).uid not in (0, os.geteuid()):
            not_ours = PermissionDeniedError(
                "not allowed", why="another user's manager", hint="run as root"
            )
            self._answer(client, error_message(not_ours), last=True)
        return True

    def _make_room(self) -> None:
        """Let go of the one that is idle for longest, so that idle ones cost no fds."""
        if len(self._clients) >= _MAX_CLIENTS:
            idle = next((client for client in self._clients if client.is_idle), None)
            if idle is not None:
                self._drop(idle)

    def _serve(self, client: _Client, ready: Ready) -> bool:
        try:
            if Ready.READ in ready:
                self._receive(client)
            if Ready.WRITE in ready and client in self._clients:
                self._send(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
        return False

    def _receive(self, client: _Client) -> None:
        data = client.connection.recv(_READ_BYTES)
        if not data:
            self._drop(client)
            return
        client.received += data
        self._serve_lines(client)

    def _serve_lines(self, client: _Client) -> None:
        while client in self._clients and not (client.waits or client.ends_when_sent):
            end = client.received.find(b"\n")
            if end < 0:
                break
            line = bytes(client.received[:end])
            del client.received[: end + 1]
            self._serve_line(client, line)
        if len(client.received) > MAX_LINE_BYTES:
            error = ControlError("that request is too long", why=f"over {MAX_LINE_BYTES} bytes")
            self._answer(client, error_message(error), last=True)

    def _serve_line(self, client: _Client, line: bytes) -> None:
        try:
            message = decode_request(line)
            if message["verb"] == "follow":
                self._begin_to_follow(client)
                return
            result = self._handle(message)
        except Exception as error:  # noqa: BLE001 - a verb that fails costs nobody else anything
            self._answer_error(client, error)
            return
        if not isinstance(result, Generator):
            self._answer(client, {"ok": True, "result": result})
            return
        client.waits = True
        client.wants_progress = message.get("progress") is True
        self._progress.within(_PROGRESS_S)
        self._loop.start(
            message["verb"],
            result,
            lambda report: self._after_job(client, report, None),
            lambda error: self._after_job(client, None, error),
        )

    def _begin_to_follow(self, client: _Client) -> None:
        """Tell of the last events at first, so that nothing is lost between those and the next."""
        past = () if client.follows else tuple(self.recent)
        self._answer(client, {"ok": True, "result": None, "past": len(past)})
        client.follows = True
        for event in past:
            self._tell(client, encode(event))

    def _after_job(self, client: _Client, report: object, error: Exception | None) -> None:
        client.waits = False
        if error is None:
            self._answer(client, {"ok": True, "result": report})
        else:
            self._answer_error(client, error)
        self._serve_lines(client)

    def _tell_progress(self) -> None:
        """Say to those who wait that we are alive."""
        waiting = [client for client in self._clients if client.waits]
        for client in waiting:
            if client.wants_progress and not client.to_send:
                client.to_send += PROGRESS
                self._watch(client)
        if waiting:
            self._progress.within(_PROGRESS_S)

    def _answer_error(self, client: _Client, error: Exception) -> None:
        if not isinstance(error, UffdballoonError):
            self._loop.report("verb", error)
            error = ControlError(
                "the manager failed at that, and goes on",
                why=f"{type(error).__name__}: {error}",
                hint="please report it, with what `uffdballoon events` tells of it",
            )
        self._answer(client, error_message(error))

    def _answer(self, client: _Client, message: dict[str, object], *, last: bool = False) -> None:
        if client not in self._clients:
            return  # it has hung up meanwhile
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
        self._tell_missed(client)
        if not client.to_send and client.ends_when_sent:
            self._drop(client)
            return
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        self._loop.want(client.fd, Ready.READ | Ready.WRITE if client.to_send else Ready.READ)

    def _flush_last(self, client: _Client) -> None:
        """Send what fits without waiting: the answer to `detach` is among it."""
        with contextlib.suppress(OSError):
            client.connection.send(client.to_send)

    def _drop(self, client: _Client) -> None:
        """Hang up; once more is no error."""
        if client in self._clients:
            del self._clients[client]
            self._loop.unwatch(client.fd)
            client.connection.close()
