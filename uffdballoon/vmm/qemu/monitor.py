# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor, for callers without an event loop.

The qemu.qmp library speaks asyncio; its loop runs on a thread of ours, so that
the rest of the program stays plain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
import struct
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
)
from qemu.qmp.error import ProtocolError
from qemu.qmp.qmp_client import GreetingError

from uffdballoon.core.relay import Relay
from uffdballoon.errors import MonitorBusyError, QmpError
from uffdballoon.target.readiness import thread_state

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Coroutine
    from types import TracebackType

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 5.0
_MAX_EVENTS = 1024


class _Inbox(EventListener):
    """Keeps the last events and makes an fd readable; the library's own grows for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)

    async def put(self, event: Message) -> None:
        self._waiting.append(dict(event))
        os.eventfd_write(self.fd, 1)

    def wake(self) -> None:
        os.eventfd_write(self.fd, 1)

    def take(self) -> list[dict[str, Any]]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken


class _Client(QMPClient):
    """A client that can go on with a connection which another one had."""

    goes_on = False
    """Whether the next connection is such a one."""

    async def _establish_session(self) -> None:
        if not self.goes_on:
            await super()._establish_session()
            return
        self.goes_on = False
        await self._get_in_step()
        self._greeting, self._pending = None, {}
        await super(QMPClient, self)._establish_session()

    async def _get_in_step(self) -> None:
        """Skip what was not for us, but for events, until a question of ours is answered.

        The end of a long line may come first, and an answer to a command of the other client. Of
        a command it may have sent a part: 0xFF has QEMU's parser begin anew (qmp-spec, "Forcing
        the JSON parser into known-good state"), and complain.
        """
        asked = {"execute": "query-status", "id": f"uffdballoon-{secrets.token_hex(8)}"}
        assert self._writer is not None
        self._writer.write(b"\xff" + json.dumps(asked).encode())
        while True:
            line = await self._readline()
            try:
                told = Message(line, eager=True)
            except ProtocolError:
                continue
            if "event" in told:
                await self._event_dispatch(told)
            elif told.get("id") == asked["id"]:
                return


class Monitor:
    """A connection to a QMP socket; close it, or use it as a context manager."""

    def __init__(self, path: str | None) -> None:
        """With None for a path it is not connected again when QEMU has ended it."""
        self.path = path
        # The library logs what we report by ourselves.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._client = _Client("uffdballoon")
        self._inbox = _Inbox()
        self._client.register_listener(self._inbox)
        # In place of the library's own, which keeps every event for ever.
        kept_for_ever, self._client.events = self._client.events, self._inbox
        self._client.remove_listener(kept_for_ever)
        self.relay: Relay | None = None
        self._memory = -1
        self._locates_for: int | None = None
        self._lost = False
        self._watcher: concurrent.futures.Future[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, path: str, *, pid: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Connect to the monitor of process ``pid``.

        Raises QmpError when there is none, when another client holds it, or when
        the socket is another process's: a wrong path must never lead to another
        VM's memory.
        """
        path = _locate(path, pid)
        monitor = cls(path)
        try:
            monitor._connect(timeout_s)
        except TimeoutError:
            monitor.close()
            raise _busy(path, pid) from None
        except (ConnectError, QMPError, OSError) as error:
            monitor.close()
            raise QmpError(
                f"cannot connect to the monitor at {path}",
                why=_why_not(error),
                hint="give the socket of -qmp unix:PATH,server=on,wait=off",
                pid=pid,
            ) from error
        monitor._watch_end()
        return monitor

    @classmethod
    def take_over(
        cls, raw: socket.socket, path: str | None, *, pid: int, memory: int, timeout_s: float
    ) -> Self | None:
        """Go on with a connection that another manager had, and that somebody else holds, too.

        It is connected anew by ``path``, should QEMU end it; the peer's own without.

        Resets are noted in ``memory`` from the first byte on. None when QEMU does not answer:
        it may be waiting for us to answer a touch.
        """
        # Who serves the path is not looked at yet: what looks waits in QEMU's queue until then.
        monitor = cls(path or _peer_path(raw))
        monitor._memory, monitor._locates_for = memory, pid
        with contextlib.suppress(ConnectError, QMPError, OSError, TimeoutError):
            monitor.relay = Relay(raw, memory)
            monitor.relay.keep(keeps=True)
            monitor._client.goes_on = True
            monitor._wait(monitor._client.connect(monitor.relay.client), timeout_s)
            monitor._watch_end()
            return monitor
        monitor.close()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:  # noqa: ANN401 - what a command returns is its own
        """Run a QMP command and return its result; raise QmpError."""
        try:
            return self._wait(self._client.execute(command, arguments), timeout_s)
        except TimeoutError:
            why, hint = f"no answer in {timeout_s:g} s", "QEMU is busy or stopped: try again"
        except ExecuteError as error:
            why, hint = str(error), "this QEMU may be too old, or built without it"
        except (ExecInterruptedError, QMPError, OSError) as error:
            why, hint = f"the connection ended ({error})", "is QEMU still running?"
        raise QmpError(f"the monitor refused {command}", why=why, hint=hint)

    def submit(self, command: str) -> concurrent.futures.Future[object]:
        """Send a command whose answer is waited for later, if at all."""
        return asyncio.run_coroutine_threadsafe(self._client.execute(command), self._loop)

    def event_fileno(self) -> int:
        """Return an fd that is readable while events wait."""
        return self._inbox.fd

    def take_events(self) -> list[dict[str, Any]]:
        """Take what QEMU told since the last time: {"event", "data", "timestamp"} each."""
        return self._inbox.take()

    def note_resets_in(self, memory: int) -> None:
        """Note resets in the memfd of a ledger, whenever this is connected anew, too."""
        self._memory = memory
        if self.relay is not None:
            self.relay.note_in(memory)

    def reconnect(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Connect again after is_lost; False when QEMU does not answer (yet)."""
        if self.path is None or not self._is_located():
            return False
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            self._wait(self._client.disconnect(), timeout_s)
        try:
            self._connect(timeout_s)
        except (ConnectError, QMPError, OSError, TimeoutError):
            return False
        self._lost = False
        self._watch_end()
        return True

    def _is_located(self) -> bool:
        if self._locates_for is not None and self.path is not None:
            with contextlib.suppress(QmpError):
                self.path = _locate(self.path, self._locates_for)
                self._locates_for = None
        return self._locates_for is None

    def _connect(self, timeout_s: float) -> None:
        assert self.path is not None
        if self.relay is not None:
            # Whoever else holds it: QEMU serves one client, and it shall be the next.
            self.relay.keep(keeps=False)
            self.relay.close()
        raw = socket.socket(socket.AF_UNIX)
        try:
            raw.settimeout(timeout_s)
            raw.connect(self.path)
            self.relay = Relay(raw, self._memory)
        except BaseException:
            raw.close()
            raise
        self._wait(self._client.connect(self.relay.client), timeout_s)

    def _watch_end(self) -> None:
        self._watcher = asyncio.run_coroutine_threadsafe(self._await_end(), self._loop)

    @property
    def is_lost(self) -> bool:
        """Whether QEMU ended the connection; event_fileno() became readable then."""
        return self._lost

    async def _await_end(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._lost = True
        self._inbox.wake()

    def hmp(self, line: str) -> str:
        """Run a command of the human monitor and return its text."""
        text = self.execute("human-monitor-command", {"command-line": line})
        return str(text).replace("\r\n", "\n")

    def close(self) -> None:
        """Disconnect; a connection that is broken already is no error."""
        try:
            self._wait(self._client.disconnect(), 1.0)
        except (QMPError, OSError, EOFError, TimeoutError):
            pass
        finally:
            if self._watcher is not None:
                self._watcher.result(1.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            os.close(self._inbox.fd)
            if self.relay is not None:
                self.relay.close()

    def _wait(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        bounded = asyncio.wait_for(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(bounded, self._loop).result()


def _peer_path(connection: socket.socket) -> str | None:
    name = connection.getpeername()
    return name if isinstance(name, str) and name.startswith("/") else None


def _why_not(error: Exception) -> str:
    """Say in one line why no session came about; the library's words have several."""
    cause = error.exc if isinstance(error, ConnectError) else error
    if isinstance(cause, EOFError):
        return "it was closed at once: what listens there wants none, or is ending"
    if isinstance(cause, (GreetingError, ValueError)):
        return "what listens there is no QMP monitor (a human monitor, a serial line?)"
    return " ".join(str(error).split())


def _busy(path: str, pid: int) -> MonitorBusyError:
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


def _locate(path: str, pid: int) -> str:
    """Return the path by which we reach the monitor: as given, or in the target's own root.

    In a mount namespace of its own, or a chroot, QEMU may know a file by a path
    that is none here. Raises QmpError.
    """
    try:
        _refuse_unless_served_by(path, pid)
    except MonitorBusyError:
        raise
    except QmpError as here:
        if not path.startswith("/"):
            raise
        inside = f"/proc/{pid}/root{path}"
        try:
            _refuse_unless_served_by(inside, pid)
        except MonitorBusyError:
            raise
        except QmpError as there:
            here.why += f"; nor in QEMU's own root, {inside}: {there.why}"
            raise here from None
        return inside
    return path


def _refuse_unless_served_by(path: str, pid: int) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(DEFAULT_TIMEOUT_S)
            probe.connect(path)
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except (BlockingIOError, TimeoutError):
        raise _busy(path, pid) from None  # even its queue of those who wait is full
    except (OSError, ValueError) as error:
        raise QmpError(
            f"cannot connect to the monitor at {path}",
            why=str(getattr(error, "strerror", None) or error),
            hint="give the socket of -qmp unix:PATH,server=on,wait=off",
            pid=pid,
        ) from error
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
