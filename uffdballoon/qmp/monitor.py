# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor, for callers without an event loop.

The qemu.qmp library speaks asyncio; its loop runs on a thread of ours, so that
the rest of the program stays plain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
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
)

from uffdballoon.errors import QmpError

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

    def take(self) -> list[dict[str, Any]]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken


class Monitor:
    """A connection to a QMP socket; close it, or use it as a context manager."""

    def __init__(self, path: str) -> None:
        self.path = path
        # The library logs what we report by ourselves.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._client = QMPClient("uffdballoon")
        self._inbox = _Inbox()
        self._client.register_listener(self._inbox)
        # In place of the library's own, which keeps every event for ever.
        kept_for_ever, self._client.events = self._client.events, self._inbox
        self._client.remove_listener(kept_for_ever)
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
        _refuse_unless_served_by(path, pid)
        monitor = cls(path)
        try:
            monitor._wait(monitor._client.connect(path), timeout_s)
        except TimeoutError:
            monitor.close()
            raise QmpError(
                f"the monitor at {path} does not answer",
                why="another client (libvirt?) is connected to it, and it serves one at a time",
                hint="start QEMU with a second -qmp socket, or leave --qmp out",
                pid=pid,
            ) from None
        except (ConnectError, QMPError, OSError) as error:
            monitor.close()
            raise QmpError(
                f"cannot connect to the monitor at {path}",
                why=str(error),
                hint="give the socket of -qmp unix:PATH,server=on,wait=off",
                pid=pid,
            ) from error
        return monitor

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
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            os.close(self._inbox.fd)

    def _wait(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        bounded = asyncio.wait_for(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(bounded, self._loop).result()


def _refuse_unless_served_by(path: str, pid: int) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(DEFAULT_TIMEOUT_S)
            probe.connect(path)
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except (OSError, ValueError) as error:
        raise QmpError(
            f"cannot connect to the monitor at {path}",
            why=str(getattr(error, "strerror", None) or error),
            hint="give the socket of -qmp unix:PATH,server=on,wait=off",
            pid=pid,
        ) from error
    owner, _, _ = struct.unpack("3i", credentials)
    # A socket that was made by whoever started QEMU carries that process's pid.
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
        links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(f"socket:[{inode}]" in links for inode in inodes)
