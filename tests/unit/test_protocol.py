# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of the control socket, and where it is."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runtime import use_runtime
from uffdballoon import errors
from uffdballoon.daemon import client, runtime
from uffdballoon.daemon.protocol import (
    PROGRESS,
    VERSION,
    decode_answer,
    decode_object,
    decode_request,
    encode,
    error_message,
    is_progress,
    raise_remote,
)
from uffdballoon.daemon.runtime import Peer, keeper_path, manager_of, peer_of, socket_path
from uffdballoon.errors import ControlError, UffdballoonError
from uffdballoon.model.records.changes import Released
from uffdballoon.target import claim

_ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, UffdballoonError)
]
_PID = 4711


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b" ", b"null", b"7", b"[]", b'"status"', b"{", b"{}", b"\xff", b"\x00"),
        *(b'{"v": 1}', b'{"v": 1, "verb": 7}', b'{"v": 1, "verb": null}'),
        *(b'{"v": 1, "verb": ["status"]}', b'{"v": 1, "verb": "status"} {}'),
        *(b"[" * 50_000, b'{"a":' * 50_000),
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(ControlError, match="that is no request"):
        decode_request(line)


@pytest.mark.parametrize("version", [None, 0, 2, "1", 1.5, [], {}])
def test_a_request_of_another_version_is_refused(version: object) -> None:
    line = json.dumps({"v": version, "verb": "status"}).encode()
    with pytest.raises(ControlError, match="another version") as refused:
        decode_request(line)
    assert str(VERSION) in refused.value.why


@given(st.dictionaries(st.text("abv", max_size=3), st.integers() | st.text('a\n"\\\u20ac')))
def test_a_request_is_read_as_it_is_written_on_one_line(more: dict[str, object]) -> None:
    message = {**more, "v": VERSION, "verb": "status"}
    line = encode(message)
    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")
    assert decode_request(line) == message


@given(st.binary(max_size=60))
def test_no_line_does_more_than_be_refused(line: bytes) -> None:
    for read in (decode_request, decode_object, lambda line: decode_answer(line, Released)):
        with contextlib.suppress(ControlError):
            read(line)


def test_progress_is_told_from_an_answer() -> None:
    assert is_progress(PROGRESS)
    assert not is_progress(encode({"ok": True, "result": {"progress": True}}))


@pytest.mark.parametrize("kind", _ERRORS)
def test_an_error_arrives_as_what_it_was(kind: type[UffdballoonError]) -> None:
    sent = kind("what", why="why", hint="do", pid=7, errno=22)
    with pytest.raises(kind) as raised:
        decode_answer(encode(error_message(sent)), Released)
    assert type(raised.value) is kind
    assert vars(raised.value) == vars(sent)


@pytest.mark.parametrize(
    "name", ["", "Exception", "ExitCode", "enum", "annotations", "__builtins__", "LaterError"]
)
def test_an_error_of_a_name_that_is_none_is_a_refusal_all_the_same(name: str) -> None:
    with pytest.raises(ControlError, match="what"):
        raise_remote({"name": name, "what": "what"})


@pytest.mark.parametrize("told", [7, [], "no", {"what": 7}, {"pid": "7"}, {"errno": 1.5}])
def test_an_error_that_makes_no_sense_is_of_another_version(told: object) -> None:
    with pytest.raises(ControlError, match="not known here"):
        raise_remote(told)


@pytest.mark.parametrize("line", [b"{}", b'{"ok": false}', b'{"ok": 1}', b'{"ok": "true"}'])
def test_an_answer_that_is_not_ok_is_a_refusal(line: bytes) -> None:
    with pytest.raises(ControlError, match="the manager refused"):
        decode_answer(line, Released)


@pytest.mark.parametrize(
    ("uid", "runtime_dir", "place"),
    [
        (0, "", "/run"),
        (0, "/run/user/0", "/run"),
        (1000, "", "/run/user/1000"),
        (1000, "/run/user/7", "/run/user/7"),
    ],
)
def test_a_socket_is_where_its_user_may_put_it(
    uid: int, runtime_dir: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
    assert socket_path(_PID) == Path(place, "uffdballoon", "4711.sock")
    assert keeper_path(_PID) == Path(place, "uffdballoon", "4711.hold")


@pytest.mark.parametrize("runtime_dir", ["/dev/null", "/proc/1/" + "long/" * 60])
def test_where_nobody_can_listen_nobody_is_attached(
    runtime_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
    with pytest.raises(errors.NotAttachedError):
        client.status(os.getpid())
    assert manager_of(os.getpid()) is None
    runtime.remove_dead_sockets()
    with pytest.raises(ControlError) as refused:
        runtime.listen_at(socket_path(_PID), _PID)
    assert "cannot listen in" in refused.value.what


@pytest.mark.usefixtures("directory")
def test_a_manager_that_too_many_wait_for_does_not_answer_and_is_attached() -> None:
    with contextlib.ExitStack() as waiting:
        listener = waiting.enter_context(runtime.listen_for_verbs(_PID))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                other = waiting.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)  # noqa: FBT003 - its only form
                other.connect(str(socket_path(_PID)))
        with pytest.raises(ControlError) as refused:
            client.status(_PID)
    assert "does not answer" in refused.value.what


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = use_runtime(monkeypatch, tmp_path)
    place.mkdir(mode=0o700)
    return place


@pytest.mark.usefixtures("directory")
def test_without_a_socket_there_is_no_manager() -> None:
    assert manager_of(_PID) is None


def test_a_dead_managers_socket_is_taken_away(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "4711.sock"))
    assert manager_of(_PID) is None
    assert list(directory.iterdir()) == []


def test_dead_sockets_go_by_one_look_at_the_locks_of_the_host(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    locks_of_the_host = claim._locks

    def counted() -> dict[str, list[int]]:
        looks.append(1)
        return locks_of_the_host()

    monkeypatch.setattr(claim, "_locks", counted)
    for pid in range(_PID, _PID + 5):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(directory / f"{pid}.sock"))
    (directory / f"{1 << 30}.hold").touch()
    (directory / f"{os.getpid()}.hold").touch()
    runtime.remove_dead_sockets()
    assert [path.name for path in directory.iterdir()] == [f"{os.getpid()}.hold"]
    assert len(looks) == 1


@pytest.mark.usefixtures("directory")
def test_a_live_manager_is_named_by_its_pid() -> None:
    with runtime.listen_for_verbs(_PID):
        assert manager_of(_PID) == os.getpid()


def test_a_socket_is_its_users_alone(directory: Path) -> None:
    with runtime.listen_for_verbs(_PID):
        assert (directory / "4711.sock").stat().st_mode & 0o777 == 0o600


def test_a_directory_that_is_lacking_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = use_runtime(monkeypatch, tmp_path / "a" / "b")
    with runtime.listen_for_verbs(_PID):
        assert place.stat().st_mode & 0o777 == 0o700


def test_where_nobody_can_listen_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    place = use_runtime(monkeypatch, tmp_path / "file")
    for attempt in (
        lambda: runtime.listen_at(socket_path(_PID), _PID),
        lambda: runtime.refuse_unless_listening_can_be(_PID),
    ):
        with pytest.raises(ControlError, match=f"cannot listen in {place}") as refused:
            attempt()
        assert refused.value.why == "Not a directory"


def test_who_is_at_the_other_end_is_told_by_the_kernel() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_of(one) == Peer(os.getpid(), os.geteuid())
