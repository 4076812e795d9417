# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket against clients that mean no good; a plain function stands for the session."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.runtime import use_runtime
from uffdballoon.daemon import client
from uffdballoon.daemon.control import ControlServer
from uffdballoon.daemon.loop import Loop
from uffdballoon.daemon.protocol import MAX_LINE_BYTES, VERSION, encode
from uffdballoon.daemon.runtime import refuse_if_attached, socket_path
from uffdballoon.errors import ControlError, RangeError, TargetBusyError, UffdballoonError
from uffdballoon.model.notice import notice
from uffdballoon.model.origin import Origin
from uffdballoon.model.part import Source
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.job import Job

PID = 4711
_FOLLOW = encode({"v": VERSION, "verb": "follow"})


def _working(word: object) -> Job[object]:
    for _ in range(3):
        yield 0.001
    if word is None:
        raise RangeError("nothing came of it")
    return word


def _answer(message: dict[str, Any]) -> object:
    if message["verb"] == "echo":
        return message["word"]
    if message["verb"] == "work":
        return _working(message["word"])
    if message["verb"] == "break":
        raise OverflowError("int too big to convert")
    raise RangeError("no", why="because", hint="do otherwise")


class _Served:
    """A server, turned by a thread of its own or, while that is stopped, by us."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.loop = Loop(lambda name, error: self.failures.append(f"{name}: {error}"))
        self.server = ControlServer(Origin(PID), self.loop, _answer)
        ends, self._end = socket.socketpair()
        self._ends = ends

        def take() -> bool:
            ends.recv(1)
            self.loop.end()
            return False

        self.loop.add(Source("end", ends.fileno(), take))
        self._now = self.loop.timer("now", lambda: None)
        self._thread = threading.Thread(target=self.loop.run)

    def turn(self, count: int = 1) -> None:
        """Have the loop do what there is to do, and not wait for more."""
        for _ in range(count):
            self._now.within(0.0)
            self.loop.turn()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._end.send(b"x")
            self._thread.join()
        self.server.close()
        self.loop.close()
        self._ends.close()
        self._end.close()


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Served]:
    """Return a server that turns when the test says so."""
    use_runtime(monkeypatch, tmp_path)
    with contextlib.closing(_Served()) as served:
        yield served


@pytest.fixture
def served(by_hand: _Served) -> _Served:
    by_hand.start()
    return by_hand


@contextlib.contextmanager
def _connected() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(PID)))
        yield connection


def _raw(data: bytes) -> bytes:
    """Send bytes and return all that comes back until the server hangs up or answers a line."""
    with _connected() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionError):
            while not received.endswith(b"\n") and (part := connection.recv(65536)):
                received += part
        return received


@contextlib.contextmanager
def _following(served: _Served) -> Iterator[socket.socket]:
    with _connected() as follower:
        follower.sendall(_FOLLOW)
        while not any(client.follows and not client.to_send for client in served.server._clients):
            served.turn()
        assert json.loads(follower.recv(4096)) == {"ok": True, "result": None, "past": 0}
        yield follower


@pytest.mark.usefixtures("served")
def test_a_request_is_answered_and_a_refusal_keeps_its_name() -> None:
    assert client.request(PID, "echo", str, word="hello") == "hello"
    with pytest.raises(RangeError) as refused:
        client.request(PID, "other", str)
    assert (refused.value.why, refused.value.hint) == ("because", "do otherwise")


@pytest.mark.usefixtures("served")
def test_a_job_is_answered_when_it_is_done() -> None:
    assert client.request(PID, "work", object, word="done") == "done"
    with pytest.raises(RangeError, match="nothing came of it"):
        client.request(PID, "work", object, word=None)


@pytest.mark.usefixtures("served")
def test_verbs_behind_a_job_wait_for_it_and_are_answered_in_their_order() -> None:
    requests = [("work", "first"), ("echo", "second"), ("work", "third"), ("echo", "last")]
    with _connected() as connection, connection.makefile("rb") as lines:
        connection.sendall(
            b"".join(encode({"v": VERSION, "verb": verb, "word": word}) for verb, word in requests)
        )
        answered = [json.loads(lines.readline())["result"] for _ in requests]
    assert answered == ["first", "second", "third", "last"]


def test_an_error_that_nobody_foresaw_is_answered_and_costs_nothing_else(served: _Served) -> None:
    with pytest.raises(ControlError, match="failed at that, and goes on") as refused:
        client.request(PID, "break", object)
    assert "OverflowError" in refused.value.why
    assert client.request(PID, "echo", object, word=1) == 1
    assert served.failures == ["verb: int too big to convert"]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "data",
    [
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"null\n",
        b'{"verb": 3}\n',
        b'{"v": 99, "verb": "echo"}\n',
        b"[" * 5000 + b"\n",
        b"x" * (2 * MAX_LINE_BYTES),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_garbage_is_refused_and_the_next_client_is_served(data: bytes) -> None:
    assert b'"ok":false' in _raw(data)
    assert client.request(PID, "echo", int, word=1) == 1


@pytest.mark.usefixtures("served")
def test_a_client_that_vanishes_costs_nothing() -> None:
    for data in (
        b"",
        b'{"v": 1, "ver',
        b'{"v": 1, "verb": "echo", "word": 1}\n',
        b'{"v": 1, "verb": "work", "word": 1}\n',
    ):
        with _connected() as connection:
            connection.sendall(data)
    assert client.request(PID, "echo", int, word=2) == 2


def test_a_follower_that_hangs_up_while_it_is_told_costs_nothing(by_hand: _Served) -> None:
    with _following(by_hand):
        more_than_is_kept_for_one = "x" * (64 << 20)
        by_hand.server.publish(notice(EventKind.INFLATE, more_than_is_kept_for_one))
    by_hand.turn()
    by_hand.turn()
    assert by_hand.failures == []
    assert by_hand.server._clients == {}


def test_a_follower_is_told_what_was_before_it_and_then_what_is(by_hand: _Served) -> None:
    by_hand.server.publish(notice(EventKind.INFLATE, size=1))
    with _connected() as follower, follower.makefile("rb") as lines:
        follower.sendall(_FOLLOW)
        while not any(client.follows for client in by_hand.server._clients):
            by_hand.turn()
        by_hand.server.publish(notice(EventKind.INFLATE, size=2))
        by_hand.turn()
        assert json.loads(lines.readline()) == {"ok": True, "result": None, "past": 1}
        assert [json.loads(lines.readline())["size"] for _ in range(2)] == [1, 2]


def test_a_burst_reaches_a_follower_that_reads(by_hand: _Served) -> None:
    burst = 20_000
    with _following(by_hand) as follower, follower.makefile("rb") as lines:
        seen: list[int] = []
        reader = threading.Thread(
            target=lambda: seen.extend(json.loads(lines.readline())["size"] for _ in range(burst))
        )
        reader.start()
        for n in range(burst):
            by_hand.server.publish(notice(EventKind.INFLATE, size=n))
        while reader.is_alive():
            by_hand.turn()
    assert seen == list(range(burst))


def test_who_does_not_read_is_told_what_it_missed_once_it_does(by_hand: _Served) -> None:
    events, line = 3_000, "x" * 5_000
    with _following(by_hand) as follower, follower.makefile("rb") as lines:
        for n in range(events):
            by_hand.server.publish(notice(EventKind.INFLATE, line, size=n))
            by_hand.turn()
        told = missed = 0
        while told + missed < events:
            by_hand.turn(4)
            event = json.loads(lines.readline())
            if event.get("kind") == "missed":
                missed += event["count"]
            else:
                assert event["size"] == told + missed
                told += 1
    assert missed == by_hand.server.events_missed > 0


@pytest.mark.usefixtures("served")
def test_clients_that_do_nothing_leave_room_for_one_that_asks() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200 + _fds_open(), limits[1]))
    try:
        with contextlib.ExitStack() as idle:
            for _ in range(90):  # each is two fds here: the server is in this process
                idle.enter_context(_connected())
            assert client.request(PID, "echo", object, word=3) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _fds_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_without_an_fd_for_it_a_client_waits_and_those_who_are_there_are_served(
    by_hand: _Served,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with _connected() as there, there.makefile("rb") as lines, socket.socket(socket.AF_UNIX) as new:
        by_hand.turn()
        new.connect(str(socket_path(PID)))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            by_hand.turn()
            there.sendall(encode({"v": VERSION, "verb": "echo", "word": 4}))
            by_hand.turn()
            by_hand.turn()
            assert json.loads(lines.readline())["result"] == 4
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        new.sendall(encode({"v": VERSION, "verb": "echo", "word": 5}))
        turns = by_hand.loop.counts.turns
        while not select.select([new], [], [], 0)[0]:
            by_hand.loop.turn()  # it sleeps until it looks for new ones again
        assert json.loads(new.recv(4096))["result"] == 5
        assert by_hand.loop.counts.turns - turns < 20


@pytest.mark.usefixtures("served")
def test_a_live_manager_is_not_replaced() -> None:
    with pytest.raises(TargetBusyError) as refused:
        refuse_if_attached(PID)
    assert str(os.getpid()) in refused.value.why


def test_a_manager_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_runtime(monkeypatch, tmp_path)
    monkeypatch.setattr(client, "_PATIENCE_S", 0.1)
    with contextlib.closing(_Served()), pytest.raises(ControlError) as refused:
        client.request(PID, "echo", object, word=1)
    assert f"process {os.getpid()}" in refused.value.why
    assert f"kill -CONT {os.getpid()}" in refused.value.hint


def test_nobody_attached_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_runtime(monkeypatch, tmp_path)
    with pytest.raises(ControlError) as refused:
        client.status(PID)
    assert "attach" in refused.value.hint


def test_a_directory_that_others_can_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_runtime(monkeypatch, tmp_path)
    (tmp_path / "uffdballoon").mkdir()
    (tmp_path / "uffdballoon").chmod(0o777)
    with Loop(lambda _name, _error: None) as loop, pytest.raises(UffdballoonError) as refused:
        ControlServer(Origin(PID), loop, _answer)
    assert "chmod 700" in refused.value.hint
