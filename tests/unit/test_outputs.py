# SPDX-License-Identifier: GPL-2.0-or-later
"""Events go where they are to go, and whatever is wrong there, nobody waits and nothing ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import socket
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uffdballoon.daemon.outputs import EventWriter
from uffdballoon.daemon.sinks import (
    FileSink,
    SocketSink,
    StreamSink,
    journal_entry,
    open_path,
    open_stream,
)
from uffdballoon.errors import UsageError
from uffdballoon.model.notice import notice
from uffdballoon.model.origin import Origin
from uffdballoon.model.records.encoding import to_json
from uffdballoon.model.records.events import Event, EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_BYTES = 1 << 20


def _event(number: int) -> Event:
    return notice(EventKind.FAILED, f"number {number}")


def _line(event: Event) -> bytes:
    return f"{to_json(event)}\n".encode()


class _Sink:
    """Takes up to ``room`` bytes, and raises what it is told to."""

    name = "there"

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.error: int | None = None
        self.taken = b""
        self.closed = False

    def write(self, data: bytes) -> int:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        taken = data[: self.room]
        self.room -= len(taken)
        self.taken += taken
        return len(taken)

    def makes_room(self, size_bytes: int) -> bool:
        assert size_bytes > 0
        return False

    def close(self) -> None:
        self.closed = True

    def numbers(self) -> list[int]:
        """What was taken: the numbers of events, and how many are missing as below zero."""
        found = [json.loads(line) for line in self.taken.splitlines()]
        return [
            -line["count"] if line["kind"] == "missed" else int(line["why"].split()[1])
            for line in found
        ]


@pytest.fixture
def told() -> list[str]:
    return []


def test_events_are_written_as_they_come(told: list[str]) -> None:
    sink = _Sink()
    writer = EventWriter(sink, _line, told.append)
    for number in range(3):
        writer.write(_event(number))
    assert sink.numbers() == [0, 1, 2]
    assert writer.flush() is None
    assert told == []
    writer.close()
    assert sink.closed


def test_a_full_disk_is_told_once_and_what_waited_is_written_when_there_is_room(
    told: list[str],
) -> None:
    sink = _Sink()
    sink.error = errno.ENOSPC
    writer = EventWriter(sink, _line, told.append)
    for number in range(5):
        writer.write(_event(number))
    assert writer.flush() is not None
    assert len(told) == 1
    assert "No space left on device" in told[0]
    sink.error = None
    assert writer.flush() is None
    assert sink.numbers() == [0, 1, 2, 3, 4]
    assert writer.unwritten == 0
    assert len(told) == 2


def test_what_there_is_no_room_for_is_counted_and_told_where_it_is_missing(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uffdballoon.daemon.outputs._MOST_WAITING_BYTES", 8192)
    sink = _Sink(room=0)
    writer = EventWriter(sink, _line, told.append)
    number = 0
    while writer.unwritten < 7:
        writer.write(_event(number))
        number += 1
    assert len(told) == 1
    assert "slow" in told[0]
    sink.room = 1 << 30
    assert writer.flush() is None
    writer.write(_event(number))
    assert sink.numbers() == [*range(number - 7), -7, number]
    assert writer.unwritten == 7


def test_a_line_that_was_begun_is_ended(told: list[str]) -> None:
    sink = _Sink(room=10)
    writer = EventWriter(sink, _line, told.append)
    writer.write(_event(1))
    sink.error = errno.ENOSPC
    writer.flush()
    sink.error, sink.room = None, 1 << 30
    writer.flush()
    assert sink.numbers() == [1]


def test_a_reader_that_has_gone_is_told_once_and_costs_nothing_more(told: list[str]) -> None:
    sink = _Sink()
    sink.error = errno.EPIPE
    encoded: list[bytes] = []

    def encode(event: Event) -> bytes:
        encoded.append(_line(event))
        return encoded[-1]

    writer = EventWriter(sink, encode, told.append)
    for number in range(4):
        writer.write(_event(number))
    assert writer.flush() is None
    assert writer.unwritten == 4
    assert len(encoded) == 1
    assert len(told) == 1
    assert "for good" in told[0]
    writer.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events"


@contextlib.contextmanager
def _opened(log: Path, limit_bytes: int = LIMIT_BYTES) -> Iterator[FileSink]:
    sink = open_path(log, limit_bytes)
    assert isinstance(sink, FileSink)
    with contextlib.closing(sink):
        yield sink


def _fill(sink: FileSink, size_bytes: int, byte: bytes) -> None:
    for _ in range(0, size_bytes, 1024):
        while sink.makes_room(1024):
            pass
        assert sink.write(byte * 1023 + b"\n") == 1024


def test_a_file_is_appended_to(log: Path) -> None:
    log.write_bytes(b"before\n")
    with _opened(log) as sink:
        sink.write(b"behind\n")
    assert log.read_bytes() == b"before\nbehind\n"
    assert not log.with_name("events.1").exists()


def test_a_file_never_grows_beyond_its_limit_and_the_older_lines_are_kept_beside_it(
    log: Path,
) -> None:
    with _opened(log) as sink:
        _fill(sink, LIMIT_BYTES, b"a")
        _fill(sink, LIMIT_BYTES // 2, b"b")
        assert log.read_bytes() == (b"b" * 1023 + b"\n") * (LIMIT_BYTES // 2048)
        older = log.with_name("events.1")
        assert older.read_bytes() == (b"a" * 1023 + b"\n") * (LIMIT_BYTES // 1024)
        _fill(sink, LIMIT_BYTES, b"c")
        assert log.stat().st_size <= LIMIT_BYTES
        assert older.read_bytes().startswith(b"b")


def test_two_attaches_do_not_write_to_one_file(log: Path) -> None:
    with _opened(log), pytest.raises(UsageError) as refused:
        open_path(log, LIMIT_BYTES)
    assert "another attach" in refused.value.why
    open_path(log, LIMIT_BYTES).close()


def test_an_older_file_is_not_written_through_a_link(log: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    log.with_name("events.1").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError):
        open_path(log, LIMIT_BYTES)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_full_device_is_no_end(told: list[str]) -> None:
    writer = EventWriter(open_path(Path("/dev/full"), LIMIT_BYTES), _line, told.append)
    for number in range(3):
        writer.write(_event(number))
    assert "No space left on device" in told[0]
    writer.close()


def test_a_fifo_that_nobody_reads_takes_what_fits_and_holds_nobody_up(
    log: Path, told: list[str]
) -> None:
    os.mkfifo(log)
    writer = EventWriter(open_path(log, LIMIT_BYTES), _line, told.append)
    number = 0
    while not writer.unwritten:
        writer.write(_event(number))
        number += 1
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    assert json.loads(os.read(reader, 4096).splitlines()[0])["why"] == "number 0"
    os.close(reader)
    writer.close()


def test_a_pipe_that_is_full_holds_nobody_up_and_stays_as_it_was_for_others() -> None:
    reader, ours = os.pipe()
    sink = open_stream("stdout", ours)
    while sink.write(b"x" * 4096):
        pass
    assert os.get_blocking(ours)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        sink.write(b"x")
    sink.close()
    os.close(ours)


def test_a_terminal_that_is_stopped_holds_nobody_up() -> None:
    master, slave = pty.openpty()
    sink = open_stream("stdout", slave)
    assert sink.write(b"x") == 1
    termios.tcflow(slave, termios.TCOOFF)  # as Ctrl-S does
    written = 0
    while (taken := sink.write(b"x" * 4096)) and written < 1 << 20:
        written += taken
    assert not taken
    termios.tcflow(slave, termios.TCOON)
    assert os.get_blocking(slave)
    sink.close()
    os.close(slave)
    os.close(master)


def test_standard_output_in_a_file_is_gone_on_with_where_it_is(log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"before\n")
    sink = open_stream("stdout", fd)
    sink.write(b"behind\n")
    os.write(fd, b"after\n")
    sink.close()
    os.close(fd)
    assert log.read_bytes() == b"before\nbehind\nafter\n"


def test_where_an_fd_cannot_be_opened_anew_it_is_asked_before_each_write() -> None:
    reader, ours = os.pipe()
    sink = StreamSink("stdout", ours, asks=True)
    while sink.write(b"x" * 8192):
        pass
    assert os.read(reader, 4)
    sink.close()
    os.close(reader)


def test_a_socket_is_sent_to_without_waiting() -> None:
    ours, theirs = socket.socketpair()
    sink = open_stream("stdout", ours.fileno())
    assert isinstance(sink, SocketSink)
    while sink.write(b"x" * 65536):
        pass
    assert ours.getblocking()
    theirs.close()
    with pytest.raises(OSError, match="pipe"):
        sink.write(b"x")
    sink.close()
    ours.close()


def test_without_a_journal_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("uffdballoon.daemon.sinks._JOURNAL", str(tmp_path / "none"))
    with pytest.raises(UsageError) as refused:
        SocketSink.to_journal()
    assert "No such file" in refused.value.why


def test_the_journal_gets_an_entry_of_an_event(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "journal")
    monkeypatch.setattr("uffdballoon.daemon.sinks._JOURNAL", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        event = Origin(4711, "web\n1").mark(_event(3))
        with contextlib.closing(SocketSink.to_journal()) as sink:
            entry = journal_entry(event, "a line\nof two", to_json(event))
            assert sink.write(entry) == len(entry)
        fields = dict(line.split("=", 1) for line in journal.recv(65536).decode().splitlines())
    assert fields["MESSAGE"] == "a line of two"
    assert fields["PRIORITY"] == "6"
    assert json.loads(fields["UFFDBALLOON_EVENT"])["why"] == "number 3"
    assert json.loads(fields["UFFDBALLOON_EVENT"])["vm"] == "web\n1"
    assert fields["UFFDBALLOON_PID"] == "4711"
    assert fields["UFFDBALLOON_VM"] == "web\\n1"
