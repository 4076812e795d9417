# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that does not grow without end, a stream whose reader may be slow, and the journal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat
from typing import TYPE_CHECKING, Self

from msgspec import UNSET

from uffdballoon.errors import UsageError
from uffdballoon.model.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

    from uffdballoon.model.records.events import Event

_PIPE_BUF = 4096  # pipe(7): a pipe that poll(2) calls writable has room for so much
_COPIED_BYTES = 4 << 20  # in a turn
_JOURNAL = "/run/systemd/journal/socket"
_WARNING, _INFORMATION = 4, 6  # syslog(3)


class FileSink:
    """Appends to a regular file; beyond a limit what is in it goes to the same name with ``.1``.

    It is copied and cut, not renamed: a manager in its sandbox cannot open a file to write
    to, and a program that holds the file open goes on with it.
    """

    def __init__(self, path: Path, fd: int, limit_bytes: int) -> None:
        """Take over the fd, open to read and append; raise UsageError, or OSError."""
        self.name = str(path)
        self._fd = fd
        self._limit_bytes = limit_bytes
        self._older_path = path.with_name(f"{path.name}.1")
        self._copied_bytes: int | None = None  # while it is copied
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size_bytes = os.fstat(fd).st_size
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._older = os.open(self._older_path, flags, 0o666)
        except BlockingIOError:
            raise UsageError(
                f"cannot write events to {path}",
                why="another attach writes there, and each would cut what the other wrote",
                hint="give each its own file",
            ) from None

    def close(self) -> None:
        """Remove the older file where nothing was put into it."""
        with contextlib.suppress(OSError):
            if os.fstat(self._older).st_size == 0:
                self._older_path.unlink()
        os.close(self._older)
        os.close(self._fd)

    def write(self, data: bytes) -> int:
        taken = os.write(self._fd, data)
        self._size_bytes += taken
        return taken

    def makes_room(self, size_bytes: int) -> bool:
        """Copy a part of what is there; where older lines cannot be kept they are lost."""
        if self._copied_bytes is None:
            if self._size_bytes + size_bytes <= max(self._limit_bytes, size_bytes):
                return False
            os.ftruncate(self._older, 0)
            self._copied_bytes = 0
        part = os.pread(self._fd, _COPIED_BYTES, self._copied_bytes)
        try:
            written = os.pwrite(self._older, part, self._copied_bytes) if part else 0
        except OSError:
            os.ftruncate(self._older, 0)
            written = 0
        self._copied_bytes += written
        if written:
            return True
        os.ftruncate(self._fd, 0)
        self._copied_bytes, self._size_bytes = None, 0
        return False


class StreamSink:
    """Writes to a pipe, a terminal, a device or what stdout leads to; waits for no reader."""

    def __init__(self, name: str, fd: int, *, asks: bool = False) -> None:
        """Take over the fd; with ``asks`` it may wait in a write, so that poll(2) is asked."""
        self.name = name
        self._fd = fd
        self._asks = asks

    @classmethod
    def beside(cls, name: str, fd: int) -> Self:
        """Write to what is behind an fd that others have, too, and leave theirs as it is."""
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return cls(name, os.dup(fd))  # with its place in the file; nobody waits for a disk
        try:
            # Opened anew: O_NONBLOCK is of the open file, and would be everybody's who has it.
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return cls(name, os.open(f"/proc/self/fd/{fd}", flags))
        except OSError:  # another user's terminal
            return cls(name, os.dup(fd), asks=True)

    def close(self) -> None:
        os.close(self._fd)

    def write(self, data: bytes) -> int:
        if self._asks:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if not poll.poll(0):
                return 0
            data = data[:_PIPE_BUF]
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def makes_room(self, size_bytes: int) -> bool:  # noqa: ARG002 - Sink's
        return False


class SocketSink:
    """Sends over a socket that is connected; datagrams go whole."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        self.name = name
        self._connection = connection

    @classmethod
    def to_journal(cls) -> Self:
        """Connect to journald; raise UsageError where there is none."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            connection.connect(_JOURNAL)
        except OSError as error:
            connection.close()
            raise UsageError(
                "cannot write events to the journal",
                why=f"{_JOURNAL}: {error.strerror}",
                hint="give a file, or - (a file of that name: ./journal)",
            ) from error
        return cls("the journal", connection)

    def close(self) -> None:
        self._connection.close()

    def write(self, data: bytes) -> int:
        try:
            return self._connection.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def makes_room(self, size_bytes: int) -> bool:  # noqa: ARG002 - Sink's
        return False


def open_path(path: Path, limit_bytes: int) -> FileSink | StreamSink:
    """Open what events are to be written to; a fifo that nobody reads is no error.

    Raises UsageError.
    """
    try:
        # Of a fifo the other end, too: without it an open fails until there is a reader.
        both = path.is_fifo() or path.is_file() or not path.exists()
        mode = os.O_RDWR if both else os.O_WRONLY
        flags = mode | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(path, flags, 0o666)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return FileSink(path, fd, limit_bytes)
        except BaseException:
            os.close(fd)
            raise
        return StreamSink(str(path), fd)
    except OSError as error:
        raise UsageError(
            f"cannot write events to {path}",
            why=error.strerror or str(error),
            hint="give a file that can be written, or -",
        ) from error


def open_stream(name: str, fd: int) -> StreamSink | SocketSink:
    """Write to where an fd of ours leads, a file, pipe, terminal or socket."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return SocketSink(name, socket.socket(fileno=os.dup(fd)))
    return StreamSink.beside(name, fd)


def journal_entry(event: Event, line: str, json_line: str) -> bytes:
    """Return an event in journald's own protocol (systemd's JOURNAL_NATIVE_PROTOCOL)."""
    fields = {
        "MESSAGE": line,
        "PRIORITY": _INFORMATION if event.verdict is None else _WARNING,
        "SYSLOG_IDENTIFIER": "uffdballoon",
        "UFFDBALLOON_KIND": event.kind.value,
        **({} if event.pid is UNSET else {"UFFDBALLOON_PID": event.pid}),
        **({} if event.vm is UNSET else {"UFFDBALLOON_VM": printable(event.vm)}),
        "UFFDBALLOON_EVENT": json_line,
    }
    return "".join(f"{name}={_one_line(value)}\n" for name, value in fields.items()).encode()


def _one_line(value: object) -> str:
    return str(value).replace("\n", " ")
