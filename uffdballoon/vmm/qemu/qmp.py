# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP client over a connected socket. It has no thread: who calls it reads the socket.

After QEMU, docs/interop/qmp-spec.rst. QEMU answers commands in their order, and sends events in
between.
"""

from __future__ import annotations

import itertools
import secrets
import select
import time
from typing import TYPE_CHECKING, Any, Protocol

from uffdballoon.errors import MonitorBusyError, QmpError
from uffdballoon.model.records.encoding import to_line
from uffdballoon.vmm.qemu.lines import LineSplitter, read_answer, read_message, refused

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uffdballoon.vmm.qemu.inbox import Inbox

DEFAULT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 64 << 10
_CHUNKS = 16  # in one go: a peer that floods leaves others their turn
_MOST_UNSENT_BYTES = 1 << 20
_MOST_UNANSWERED = 64
_CLOSED = "it was closed"
_RESTART = b"\xff"
"""Has QEMU's parser begin anew (qmp-spec, "Forcing the JSON parser into known-good state")."""


class Commands(Protocol):
    """What takes commands: a connection, or a monitor, which may have several in its life."""

    def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any: ...  # noqa: ANN401

    def submit(self, command: str, arguments: dict[str, object] | None = None) -> Pending: ...


class Pending:
    """A command that was sent; its answer comes when the connection is read."""

    def __init__(self, connection: QmpConnection, command: str) -> None:
        self.command = command
        self._connection = connection
        self._answer: dict[str, Any] | None = None

    def settle(self, answer: dict[str, Any]) -> None:
        self._answer = answer

    @property
    def is_answered(self) -> bool:
        return self._answer is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: it was answered, or the connection ended."""
        return self.is_answered or self._connection.is_lost

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is over; with 0 no longer than it takes to read what is there."""
        return self._connection.wait_until(lambda: self.is_over, timeout_s)

    def result(self, timeout_s: float = 0.0) -> Any:  # noqa: ANN401 - a command's own
        """Return what the command returned; raise QmpError for a refusal, or for no answer."""
        self.wait(timeout_s)
        if self._answer is not None:
            return read_answer(self._answer, self.command)
        if self._connection.is_lost:
            raise self._connection.lost_error(self.command)
        raise refused(
            self.command, f"no answer in {timeout_s:g} s", "QEMU is busy or stopped: try again"
        )


class QmpConnection:
    """A client on a connected stream socket, which it owns. Events go into ``inbox``.

    It is ready for commands after greet() or get_in_step(). Whatever the peer does that is no QMP
    ends it: is_lost is true then, the socket closed, and each command a QmpError.
    """

    def __init__(self, connected: socket.socket, inbox: Inbox) -> None:
        connected.settimeout(0)
        self._socket = connected
        self._inbox = inbox
        self._lines = LineSplitter()
        self._unsent = bytearray()
        self._prefix = f"uffdballoon-{secrets.token_hex(8)}"
        self._numbers = itertools.count()
        self._pending: dict[str, Pending] = {}
        self._greeting: Pending | None = None
        self._is_out_of_step = False
        self._why_lost = ""
        inbox.watch(connected)

    @property
    def is_lost(self) -> bool:
        """Whether it has ended, as far as the socket was read."""
        return bool(self._why_lost)

    def lost_error(self, command: str) -> QmpError:
        return refused(
            command, f"the connection ended ({self._why_lost})", "is QEMU still running?"
        )

    def greet(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Hear QEMU's greeting and ask it for no capability.

        Raises MonitorBusyError when it says nothing, and QmpError when it is no QMP monitor.
        """
        try:
            self._greet(time.monotonic() + timeout_s)
        except QmpError as error:
            self._end(error.why)
            raise

    def _greet(self, deadline: float) -> None:
        greeting = self._greeting = Pending(self, "the greeting")
        if not greeting.wait(deadline - time.monotonic()):
            raise _silent_error()
        if not greeting.is_answered:
            raise _no_monitor_error(self._why_lost)
        negotiated = self.submit("qmp_capabilities")
        if not negotiated.wait(deadline - time.monotonic()):
            raise _silent_error()
        negotiated.result()

    def get_in_step(self, timeout_s: float) -> None:
        """Go on with a connection that another client had; raise QmpError without an answer.

        Skips what was not for us, but for events, until a question of ours is answered. The end
        of a long line may come first, and an answer to a command of the other client. Of a
        command it may have sent a part, of which QEMU's parser complains.
        """
        self._is_out_of_step = True
        self._unsent += _RESTART
        try:
            self.execute("query-status", timeout_s=timeout_s)
        finally:
            self._is_out_of_step = False

    def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:  # noqa: ANN401 - what a command returns is its own
        """Run a command and return its result; raise QmpError.

        A command that is not answered in time may be done later; its answer is dropped.
        """
        pending = self.submit(command, arguments)
        try:
            return pending.result(timeout_s)
        finally:
            self._forget(pending)

    def submit(self, command: str, arguments: dict[str, object] | None = None) -> Pending:
        """Send a command and wait for nothing; raise QmpError when it cannot be sent."""
        self._flush()
        if self.is_lost:
            raise self.lost_error(command)
        if len(self._pending) >= _MOST_UNANSWERED or len(self._unsent) > _MOST_UNSENT_BYTES:
            raise refused(command, "too much waits for QEMU", "QEMU is busy or stopped: try again")
        line, pending = self._message(command, arguments)
        self._unsent += line
        self._flush()
        return pending

    def execute_by(
        self,
        send: Callable[[bytes], None],
        command: str,
        arguments: dict[str, object],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:  # noqa: ANN401 - what a command returns is its own
        """Run a command whose line goes to QEMU by another way; raise QmpError.

        Nothing of ours is on the usual way then: QEMU has answered what was sent before.
        """
        self.execute("query-status", timeout_s=timeout_s)
        line, pending = self._message(command, arguments)
        try:
            send(line)
            return pending.result(timeout_s)
        except OSError as error:
            raise refused(command, str(error.strerror), "is QEMU still running?") from error
        finally:
            self._forget(pending)

    def _message(self, command: str, arguments: dict[str, object] | None) -> tuple[bytes, Pending]:
        """Return a command's line, and what its answer will settle."""
        pending = Pending(self, command)
        number = f"{self._prefix}-{next(self._numbers)}"
        message: dict[str, object] = {"execute": command, "id": number}
        if arguments is not None:
            message["arguments"] = arguments
        self._pending[number] = pending
        return to_line(message), pending

    def receive(self) -> None:
        """Read what is there, and send on what could not be sent; never wait."""
        self._flush()
        self._read()

    def _read(self) -> None:
        for _ in range(_CHUNKS):
            if self.is_lost:
                return
            try:
                data = self._socket.recv(_CHUNK_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(str(error.strerror))
                return
            self._take(data)

    def wait_until(self, is_done: Callable[[], bool], timeout_s: float) -> bool:
        """Read until it is so; False when it is not in time, or the connection ended first."""
        deadline = time.monotonic() + timeout_s
        self.receive()
        while not is_done() and not self.is_lost:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            poll.poll(left_s * 1000)
            self.receive()
        return is_done()

    def fileno(self) -> int:
        """Return an fd that is readable while events wait, or bytes, or the end."""
        return self._inbox.fileno()

    def take_events(self) -> list[dict[str, Any]]:
        """Take what QEMU told since the last time, of what is there: never wait."""
        self.receive()
        return self._inbox.take()

    def close(self) -> None:
        self._end("it was closed by us")

    def _flush(self) -> None:
        while self._unsent and not self.is_lost:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                self._read()  # what it said last
                self._end(str(error.strerror))
                return
            del self._unsent[:sent]

    def _take(self, data: bytes) -> None:
        if not data:
            within = self._lines.is_within_line
            self._end(f"{_CLOSED} in the middle of a message" if within else _CLOSED)
            return
        try:
            for line in self._lines.feed(data):
                self._hear(line)
        except QmpError as error:
            self._end(error.why)

    def _hear(self, line: bytes) -> None:
        try:
            message = read_message(line)
        except QmpError:
            if self._is_out_of_step:
                return
            raise
        if "event" in message:  # as QEMU starts, one may be told before it greets
            self._inbox.put(message)
        elif self._greeting is not None:
            _check_greeting(message)
            self._greeting.settle(message)
            self._greeting = None
        else:
            # Others are answers to another client, or to us who waits no more.
            number = message.get("id")
            pending = self._pending.pop(number, None) if isinstance(number, str) else None
            if pending is not None:
                pending.settle(message)

    def _forget(self, pending: Pending) -> None:
        if not pending.is_answered:
            self._pending = {n: p for n, p in self._pending.items() if p is not pending}

    def _end(self, why: str) -> None:
        if self.is_lost:
            return
        self._why_lost = why
        self._pending.clear()
        self._unsent.clear()
        self._inbox.unwatch(self._socket)
        self._socket.close()


def _check_greeting(message: dict[str, Any]) -> None:
    greeting = message.get("QMP")
    if not isinstance(greeting, dict) or not isinstance(greeting.get("capabilities"), list):
        raise QmpError("that is no greeting", why="it has no capabilities")


def _no_monitor_error(why: str) -> QmpError:
    if why == _CLOSED:
        why = f"{_CLOSED} at once: what listens there wants none, or is ending"
    else:
        why = f"what listens there is no QMP monitor (a human monitor, a serial line?): {why}"
    return QmpError(
        "there is no monitor", why=why, hint="give the socket of -qmp unix:PATH,server=on,wait=off"
    )


def _silent_error() -> MonitorBusyError:
    return MonitorBusyError(
        "the monitor does not answer",
        why="it says nothing, and serves one client at a time",
        hint="is another client (libvirt?) connected to it, or is QEMU stopped?",
    )
