# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor, through the relay: whose it is, and how it is connected to again."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_S = 20.0
_GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
_ANOTHER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "qmp")


@pytest.fixture
def listener(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(_PATIENCE_S)
        yield listener


@contextlib.contextmanager
def _serving(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """Be the QEMU that greets its next client; the connection is there in the end."""
    served: list[socket.socket] = []

    def serve() -> None:
        connection, _ = listener.accept()
        served.append(connection)
        connection.sendall(_GREETING)
        command = json.loads(connection.recv(4096))
        connection.sendall(json.dumps({"return": {}, "id": command["id"]}).encode() + b"\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield served
    thread.join()


@pytest.fixture
def monitor(listener: socket.socket, path: str) -> Iterator[Monitor]:
    with _serving(listener) as served:
        monitor = Monitor.connect(path, pid=os.getpid(), timeout_s=_PATIENCE_S)
    with monitor, served[0]:
        yield monitor


def _wait_for_the_end(monitor: Monitor) -> None:
    while not monitor.is_lost:
        assert select.select([monitor], [], [], _PATIENCE_S)[0]
        monitor.take_events()


def test_one_connection_is_made(monitor: Monitor, listener: socket.socket) -> None:
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert not monitor.is_lost


def test_it_is_connected_to_again_and_its_fd_stays(listener: socket.socket, path: str) -> None:
    with _serving(listener) as served:
        monitor = Monitor.connect(path, pid=os.getpid(), timeout_s=_PATIENCE_S)
    fd = monitor.fileno()
    with monitor:
        served[0].close()
        _wait_for_the_end(monitor)
        with _serving(listener) as again:
            assert monitor.reconnect(_PATIENCE_S)
        with again[0] as connection:
            assert monitor.fileno() == fd
            connection.sendall(b'{"event": "STOP"}\r\n')
            assert select.select([fd], [], [], _PATIENCE_S)[0]
            assert [event["event"] for event in monitor.take_events()] == ["STOP"]


def test_another_process_at_that_path_is_not_gone_on_with(
    listener: socket.socket, path: str
) -> None:
    with _serving(listener) as served:
        monitor = Monitor.connect(path, pid=os.getpid(), timeout_s=_PATIENCE_S)
    with monitor:
        served[0].close()
        _wait_for_the_end(monitor)
        Path(path).unlink()
        listener.close()
        command = [sys.executable, "-c", _ANOTHER, path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as another:
            assert another.stdout is not None
            assert another.stdout.readline()
            assert not monitor.reconnect(_PATIENCE_S)
            with pytest.raises(QmpError, match="is not that of process"):
                Monitor.connect(path, pid=os.getpid(), timeout_s=_PATIENCE_S)
            another.communicate()
