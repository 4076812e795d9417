# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket against clients that mean no good; a plain function stands for the session."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from uffdballoon.daemon import client
from uffdballoon.daemon.control import ControlServer, refuse_if_attached
from uffdballoon.daemon.protocol import MAX_LINE_BYTES, socket_path
from uffdballoon.errors import ControlError, RangeError, TargetBusyError, UffdballoonError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PID = 4711


def _answer(message: dict[str, Any]) -> object:
    if message["verb"] == "echo":
        return message["word"]
    raise RangeError("no", why="because", hint="do otherwise")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ends, end = socket.socketpair()
    with selectors.DefaultSelector() as selector:
        server = ControlServer(PID, selector, _answer)
        selector.register(ends, selectors.EVENT_READ, None)

        def serve() -> None:
            while True:
                for key, mask in selector.select():
                    if key.data is None:
                        return
                    key.data(mask)

        loop = threading.Thread(target=serve)
        loop.start()
        try:
            yield server
        finally:
            end.send(b"x")
            loop.join()
            server.close()
            selector.unregister(ends)
            ends.close()
            end.close()


def _raw(data: bytes) -> bytes:
    """Send bytes and return all that comes back until the server hangs up or answers a line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(PID)))
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionError):
            while not received.endswith(b"\n") and (part := connection.recv(65536)):
                received += part
        return received


@pytest.mark.usefixtures("server")
def test_a_request_is_answered_and_a_refusal_keeps_its_name() -> None:
    assert client.request(PID, "echo", str, word="hello") == "hello"
    with pytest.raises(RangeError) as refused:
        client.request(PID, "other", str)
    assert (refused.value.why, refused.value.hint) == ("because", "do otherwise")


@pytest.mark.usefixtures("server")
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
)
def test_garbage_is_refused_and_the_next_client_is_served(data: bytes) -> None:
    assert b'"ok":false' in _raw(data)
    assert client.request(PID, "echo", int, word=1) == 1


@pytest.mark.usefixtures("server")
def test_a_client_that_vanishes_costs_nothing() -> None:
    for data in (b"", b'{"v": 1, "ver', b'{"v": 1, "verb": "echo", "word": 1}\n'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(socket_path(PID)))
            connection.sendall(data)
    assert client.request(PID, "echo", int, word=2) == 2


@pytest.mark.usefixtures("server")
def test_a_live_manager_is_not_replaced() -> None:
    with pytest.raises(TargetBusyError) as refused:
        refuse_if_attached(PID)
    assert str(os.getpid()) in refused.value.why


def test_nobody_attached_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ControlError) as refused:
        client.status(PID)
    assert "attach" in refused.value.hint


def test_a_directory_that_others_can_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "uffdballoon").mkdir()
    (tmp_path / "uffdballoon").chmod(0o777)
    with selectors.DefaultSelector() as selector, pytest.raises(UffdballoonError) as refused:
        ControlServer(PID, selector, _answer)
    assert "chmod 700" in refused.value.hint
