# SPDX-License-Identifier: GPL-2.0-or-later
"""The bridge to libvirt, with a link that a test plays."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu.libvirt_bridge import Bridge
from uffdballoon.vmm.qemu.monitor import Monitor
from uffdballoon.vmm.qemu.peer import BRIDGES, reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PATIENCE_S = 20.0
_RESET = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESET", "data": {"a": 1}}


class Played:
    """A libvirt that answers with what it was asked, and can be away or silent."""

    def __init__(self) -> None:
        self.is_away = False
        self.asked: list[dict[str, Any]] = []
        self.files: list[int] = []
        self.connected = threading.Semaphore(0)
        self.answers = threading.Event()
        self.answers.set()

    def connect(self) -> None:
        if self.is_away:
            raise QmpError("it is away")
        self.connected.release()

    def ask(self, command: dict[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        self.asked.append(command)
        self.files += [os.dup(fd) for fd in files]
        self.answers.wait(_PATIENCE_S)
        if command["execute"] == "refused":
            return {"error": {"class": "GenericError", "desc": "no"}}
        return {"return": command["execute"]}


class Running:
    """A bridge that runs, with the path that leads to it."""

    def __init__(self, orphan_s: float = 600.0) -> None:
        self.path = f"{BRIDGES}{os.getpid()}/{secrets.token_hex(8)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0" + self.path[1:])
        listener.listen()
        self.link = Played()
        ends, self._end = os.pipe()
        self.bridge = Bridge(listener, ends)
        self.bridge.start(self.link)
        self.thread = threading.Thread(target=self._run, args=(orphan_s, listener, ends))
        self.thread.start()

    def connect(self) -> socket.socket:
        return reach(self.path, os.getpid(), _PATIENCE_S)[0]

    def end(self) -> None:
        self.link.answers.set()
        os.close(self._end)
        self.join()

    def join(self) -> None:
        self.thread.join(_PATIENCE_S)
        assert not self.thread.is_alive()

    def _run(self, orphan_s: float, listener: socket.socket, ends: int) -> None:
        self.bridge.run(orphan_s)
        listener.close()
        os.close(ends)


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.end()


@pytest.fixture
def monitor(running: Running) -> Iterator[Monitor]:
    with Monitor.connect(running.path, pid=os.getpid()) as monitor:
        yield monitor


def _wait_for_the_end(monitor: Monitor) -> None:
    with contextlib.suppress(QmpError):
        monitor.execute("until it ends")
    while not monitor.is_lost:
        monitor.take_events()


def test_a_command_goes_without_its_id_and_the_answer_comes_with_it(
    running: Running, monitor: Monitor
) -> None:
    assert monitor.execute("stop", {"now": True}) == "stop"
    with pytest.raises(QmpError, match="no"):
        monitor.execute("refused")
    assert running.link.asked[0] == {"execute": "stop", "arguments": {"now": True}}


def test_a_file_goes_with_the_command_that_takes_it(running: Running, monitor: Monitor) -> None:
    file = os.memfd_create("given")
    monitor.execute("one")
    assert monitor.execute_with_file("getfd", {"fdname": "given"}, file) == "getfd"
    assert monitor.execute("another") == "another"
    (given,) = running.link.files
    assert os.path.samestat(os.fstat(given), os.fstat(file))
    assert [asked["execute"] for asked in running.link.asked] == [
        "one",
        "query-status",
        "getfd",
        "another",
    ]
    os.close(given)
    os.close(file)


def test_an_event_comes_as_qemu_writes_it(running: Running) -> None:
    with running.connect() as connected, connected.makefile("rb") as lines:
        assert "QMP" in json.loads(lines.readline())
        connected.sendall(b'{"execute": "qmp_capabilities", "id": 1}\n')
        assert json.loads(lines.readline()) == {"return": {}, "id": 1}
        running.bridge.on_event(_RESET)
        line = lines.readline()
    # Which the C library's relay looks for.
    assert b'"event": "RESET"' in line
    assert b'"seconds": 1, "microseconds": 2' in line
    assert line.endswith(b"\r\n")
    assert json.loads(line) == _RESET


def test_an_event_comes_while_qemu_does_not_answer(running: Running, monitor: Monitor) -> None:
    running.link.answers.clear()
    pending = monitor.submit("query-status")
    running.bridge.on_event(_RESET)
    events: list[dict[str, Any]] = []
    while not events:
        events = monitor.take_events()
    assert events == [_RESET]
    assert not pending.is_answered


def test_a_libvirt_that_goes_is_a_monitor_that_hangs_up_and_can_be_connected_to_again(
    running: Running, monitor: Monitor
) -> None:
    running.link.is_away = True
    running.bridge.on_lost()
    _wait_for_the_end(monitor)
    assert not monitor.reconnect()
    running.link.is_away = False
    assert running.link.connected.acquire(timeout=_PATIENCE_S)
    while not monitor.reconnect():
        pass
    assert monitor.execute("cont") == "cont"


def test_it_ends_when_its_client_hangs_up_and_qemu_does_not_answer() -> None:
    running = Running()
    with Monitor.connect(running.path, pid=os.getpid()) as monitor:
        running.link.answers.clear()
        monitor.submit("query-status")
    running.join()
    running.end()


def test_it_ends_when_its_target_does() -> None:
    running = Running()
    with Monitor.connect(running.path, pid=os.getpid()):
        running.end()


def test_it_ends_when_nobody_comes() -> None:
    running = Running(orphan_s=0.01)
    running.join()
    running.end()


def test_there_is_one_client_at_a_time(running: Running, monitor: Monitor) -> None:
    with running.connect() as second:
        assert second.recv(1) == b""
    assert monitor.execute("cont") == "cont"


def test_what_another_manager_left_half_is_skipped(running: Running) -> None:
    with running.connect() as connected, connected.makefile("rb") as lines:
        lines.readline()
        connected.sendall(b'{"execute": "half\xff{"execute": "whole", "id": 7}\n')
        assert json.loads(lines.readline()) == {"return": "whole", "id": 7}
        connected.sendall(b"[]\n")
        assert "error" in json.loads(lines.readline())
    assert [command["execute"] for command in running.link.asked] == ["whole"]
