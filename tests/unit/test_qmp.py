# SPDX-License-Identifier: GPL-2.0-or-later
"""The client of QEMU's monitor, against peers of all kinds."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import MonitorBusyError, QmpError
from uffdballoon.model.job import run_job
from uffdballoon.vmm.qemu.inbox import Inbox
from uffdballoon.vmm.qemu.latest import LatestAnswers
from uffdballoon.vmm.qemu.lines import LineSplitter, read_message
from uffdballoon.vmm.qemu.pausing import stopping_vm
from uffdballoon.vmm.qemu.qmp import QmpConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GREETING = b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}\r\n'
_EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}\r\n'
_PATIENCE_S = 20.0
_NO_MONITOR = "what listens there is no QMP monitor"


class _Qemu:
    """The other end of a connection: says what it is told to, and nothing by itself."""

    def __init__(self) -> None:
        self.socket, self.client = socket.socketpair()
        self.socket.settimeout(_PATIENCE_S)
        self._reader = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self.client.close()

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> dict[str, Any]:
        command = json.loads(self._reader.readline().lstrip(b"\xff"))
        assert isinstance(command, dict)
        return command

    def answer(self, said: object, *, before: bytes = b"") -> dict[str, Any]:
        command = self.hear()
        self.say(before + json.dumps({"return": said, "id": command["id"]}).encode() + b"\r\n")
        return command

    def refuse(self, why: object) -> None:
        number = self.hear()["id"]
        self.say(json.dumps({"error": why, "id": number}).encode() + b"\r\n")

    def hang_up(self) -> None:
        self._reader.close()
        self.socket.close()


@contextlib.contextmanager
def _meanwhile(*acts: Callable[[], object]) -> Iterator[None]:
    """Let the other end act while we wait for it."""

    def act() -> None:
        for one in acts:
            one()

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()


@pytest.fixture
def qemu() -> Iterator[_Qemu]:
    with _Qemu() as qemu:
        yield qemu


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with contextlib.closing(Inbox()) as inbox:
        yield inbox


@pytest.fixture
def raw(qemu: _Qemu, inbox: Inbox) -> Iterator[QmpConnection]:
    with contextlib.closing(QmpConnection(qemu.client, inbox)) as connection:
        yield connection


@pytest.fixture
def monitor(raw: QmpConnection, qemu: _Qemu) -> QmpConnection:
    qemu.say(_GREETING)
    with _meanwhile(lambda: qemu.answer({})):
        raw.greet(_PATIENCE_S)
    return raw


def _is_readable(inbox: Inbox | QmpConnection) -> bool:
    return bool(select.select([inbox], [], [], 0)[0])


def test_a_command_has_its_own_answer_and_events_wait(monitor: QmpConnection, qemu: _Qemu) -> None:
    assert not _is_readable(monitor)
    with _meanwhile(lambda: qemu.answer({"running": True}, before=_EVENT)):
        told = monitor.execute("query-status", {"a": [1]}, timeout_s=_PATIENCE_S)
    assert told == {"running": True}
    assert _is_readable(monitor), "an event came with the answer, and nobody took it yet"
    assert [event["event"] for event in monitor.take_events()] == ["RESUME"]
    assert not _is_readable(monitor)


def test_answers_in_any_order_find_their_commands(monitor: QmpConnection, qemu: _Qemu) -> None:
    pending = [monitor.submit(f"query-{number}") for number in range(3)]
    commands = [qemu.hear() for _ in pending]
    assert not any(one.wait(0.0) for one in pending)
    for number, command in reversed(list(enumerate(commands))):
        qemu.say(json.dumps({"return": number, "id": command["id"]}).encode() + b"\n")
    assert [one.result() for one in pending] == [0, 1, 2]


def test_answers_to_others_are_passed_over(monitor: QmpConnection, qemu: _Qemu) -> None:
    others = b'{"return": 7, "id": "x"}\n{"return": 8}\n{"error": {}, "id": [1]}\n{"id": 7}\n'
    with _meanwhile(lambda: qemu.answer(5, before=others)):
        assert monitor.execute("query-version", timeout_s=_PATIENCE_S) == 5


def test_an_answer_that_is_late_is_nobodys(monitor: QmpConnection, qemu: _Qemu) -> None:
    with pytest.raises(QmpError, match="refused query-status") as refused:
        monitor.execute("query-status", timeout_s=0.0)
    assert refused.value.why.startswith("no answer in")
    assert refused.value.hint
    qemu.answer("late")
    with _meanwhile(lambda: qemu.answer("in time")):
        assert monitor.execute("query-status", timeout_s=_PATIENCE_S) == "in time"


def test_a_refusal_says_what_qemu_says(monitor: QmpConnection, qemu: _Qemu) -> None:
    error = {"class": "GenericError", "desc": "no\nballoon"}
    with _meanwhile(lambda: qemu.refuse(error)), pytest.raises(QmpError) as refused:
        monitor.execute("query-balloon", timeout_s=_PATIENCE_S)
    assert refused.value.why == "no balloon"
    assert not monitor.is_lost


@pytest.mark.parametrize("error", [7, {}, {"desc": 7}, None])
def test_an_error_that_is_none_is_named(error: object, monitor: QmpConnection, qemu: _Qemu) -> None:
    with _meanwhile(lambda: qemu.refuse(error)), pytest.raises(QmpError, match="not understood"):
        monitor.execute("query-balloon", timeout_s=_PATIENCE_S)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no JSON"),
        (b"\x00\xff\xfe\n", "no JSON"),
        (b"[]\n", "no JSON object"),
        (b"\n", "no JSON"),
        (b'{"a": ' + b"[" * 200_000 + b"\n", "no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "no JSON"),
        (b"x" * ((10 << 20) + 1), "a line of more than"),
    ],
    ids=["text", "bytes", "list", "blank", "deep", "digits", "flood"],
)
def test_what_is_no_message_ends_the_connection(
    said: bytes, why: str, monitor: QmpConnection, qemu: _Qemu
) -> None:
    def flood() -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            qemu.say(said)

    with _meanwhile(flood), pytest.raises(QmpError, match="refused query-status") as refused:
        monitor.execute("query-status", timeout_s=_PATIENCE_S)
    assert why in refused.value.why
    assert "\n" not in refused.value.why
    assert refused.value.hint
    assert monitor.is_lost
    with pytest.raises(QmpError):
        monitor.submit("stop")


@pytest.mark.parametrize(
    ("said", "why"), [(b"", "it was closed)"), (_EVENT[:9], "in the middle of a message")]
)
def test_an_end_is_told_once_and_by_name(
    said: bytes, why: str, monitor: QmpConnection, qemu: _Qemu
) -> None:
    pending = monitor.submit("query-status")
    qemu.say(said)
    qemu.hear()
    qemu.hang_up()
    assert _is_readable(monitor)
    assert monitor.take_events() == []
    assert monitor.is_lost
    assert not _is_readable(monitor), "a loop would spin"
    with pytest.raises(QmpError) as refused:
        pending.result()
    assert why in refused.value.why


def test_its_last_events_are_read_though_nothing_can_be_sent_any_more(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    qemu.say(_EVENT)
    qemu.hang_up()
    with pytest.raises(QmpError, match="connection ended"):
        monitor.execute("query-status", timeout_s=_PATIENCE_S)
    assert len(monitor.take_events()) == 1


def test_the_inbox_serves_the_next_connection(
    monitor: QmpConnection, qemu: _Qemu, inbox: Inbox
) -> None:
    qemu.hang_up()
    monitor.take_events()
    with _Qemu() as again, contextlib.closing(QmpConnection(again.client, inbox)) as connection:
        assert not _is_readable(inbox)
        again.say(_GREETING)
        assert _is_readable(inbox)
        with _meanwhile(lambda: again.answer({}, before=_EVENT)):
            connection.greet(_PATIENCE_S)
        assert len(connection.take_events()) == 1


@pytest.mark.parametrize(
    "said",
    [
        b"QEMU 7.2.0 monitor - type 'help' for more information\r\n",
        b'{"QMP": {}}\n',
        b'{"QMP": 7}\n',
        b'{"QMP": {"version": {}, "capabilities": 7}}\n',
        _EVENT + b'{"QMP": 7}\n',
        _GREETING[:20],
    ],
    ids=["human", "empty", "number", "capabilities", "behind-event", "cut"],
)
def test_what_does_not_greet_as_qmp_is_no_monitor(
    said: bytes, raw: QmpConnection, qemu: _Qemu
) -> None:
    qemu.say(said)
    qemu.hang_up()
    with pytest.raises(QmpError) as refused:
        raw.greet(_PATIENCE_S)
    assert refused.value.why.startswith(_NO_MONITOR)
    assert raw.is_lost


def test_an_event_that_comes_before_the_greeting_is_kept(raw: QmpConnection, qemu: _Qemu) -> None:
    qemu.say(_EVENT + _GREETING)
    with _meanwhile(lambda: qemu.answer({})):
        raw.greet(_PATIENCE_S)
    assert [event["event"] for event in raw.take_events()] == ["RESUME"]


def test_one_that_hangs_up_at_once_is_told_from_no_monitor(raw: QmpConnection, qemu: _Qemu) -> None:
    qemu.hang_up()
    with pytest.raises(QmpError, match="closed at once"):
        raw.greet(_PATIENCE_S)


@pytest.mark.parametrize("said", [b"", _GREETING[:20], _GREETING], ids=["not", "half", "no more"])
def test_one_that_is_silent_is_busy(said: bytes, raw: QmpConnection, qemu: _Qemu) -> None:
    qemu.say(said)
    with pytest.raises(MonitorBusyError):
        raw.greet(0.05)
    assert raw.is_lost
    assert len(qemu.socket.recv(1 << 16)) >= 0, "it hears the end"


def test_a_refused_negotiation_ends_the_connection(raw: QmpConnection, qemu: _Qemu) -> None:
    qemu.say(_GREETING)
    with _meanwhile(lambda: qemu.refuse({"desc": "no"})), pytest.raises(QmpError, match="no"):
        raw.greet(_PATIENCE_S)
    assert raw.is_lost


def test_what_was_for_another_client_is_passed_over_but_for_events(
    raw: QmpConnection, qemu: _Qemu
) -> None:
    left = b'f a line"}\r\n' + _EVENT + b'{"return": {}, "id": 3}\r\n'
    complaint = b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n'
    with _meanwhile(lambda: qemu.answer({}, before=left + complaint + _EVENT)):
        raw.get_in_step(_PATIENCE_S)
    assert len(raw.take_events()) == 2
    qemu.say(b"nonsense\n")
    raw.take_events()
    assert raw.is_lost, "only what was left of another is passed over"


def test_a_peer_that_answers_nothing_is_not_gone_on_with(raw: QmpConnection) -> None:
    with pytest.raises(QmpError):
        raw.get_in_step(0.05)


@pytest.mark.parametrize("size_bytes", [1, 50 << 10])
def test_a_peer_that_reads_nothing_costs_bounded_memory(
    size_bytes: int, monitor: QmpConnection, qemu: _Qemu
) -> None:
    def submit_many() -> None:
        for _ in range(100):
            monitor.submit("human-monitor-command", {"command-line": "x" * size_bytes})

    with pytest.raises(QmpError, match="too much waits"):
        submit_many()
    assert not monitor.is_lost
    assert qemu.hear()["execute"] == "human-monitor-command"


def test_a_long_command_reaches_a_peer_that_reads_slowly(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    long = "x" * (1 << 20)
    with _meanwhile(lambda: qemu.answer("done")):
        assert monitor.execute("x", {"long": long}, timeout_s=_PATIENCE_S) == "done"


def test_events_of_a_flood_are_bounded_and_the_last_ones_stay(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    lines = b"".join(b'{"event": "E%d"}\n' % number for number in range(5000))
    with _meanwhile(lambda: qemu.answer({}, before=lines)):
        monitor.execute("query-status", timeout_s=_PATIENCE_S)
    events = monitor.take_events()
    assert len(events) <= 2000
    assert events[-1]["event"] == "E4999"


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"-"))), st.data())
def test_lines_are_the_same_wherever_bytes_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    cuts = data.draw(st.lists(st.integers(0, len(stream))).map(sorted))
    splitter = LineSplitter()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [line for piece in pieces for line in splitter.feed(piece)] == lines
    assert splitter.is_within_line


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 30))
def test_a_line_is_too_long_wherever_it_is_cut(before: int, most: int, step: int) -> None:
    def feed(stream: bytes) -> list[bytes]:
        splitter = LineSplitter(most)
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        return [line for piece in pieces for line in splitter.feed(piece)]

    head = b"\n" * before
    assert feed(head + b"x" * most + b"\n")[-1] == b"x" * most
    with pytest.raises(QmpError):
        feed(head + b"x" * (most + 1) + b"\n")


@given(st.binary())
def test_any_line_is_an_object_or_a_named_error(line: bytes) -> None:
    with contextlib.suppress(QmpError):
        assert isinstance(read_message(line), dict)


def test_a_question_is_answered_by_what_was_said_last_while_qemu_is_stuck(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    latest = LatestAnswers(monitor)
    with latest.patient(_PATIENCE_S), _meanwhile(lambda: qemu.answer(1)):
        assert latest.execute("query-balloon") == 1
    assert latest.execute("query-balloon") == 1
    assert latest.are_late()
    with pytest.raises(QmpError, match="no answer yet"):
        latest.execute("query-status")
    for _ in range(200):
        assert latest.execute("query-balloon") == 1, "asked once, and no more until it answers"
    qemu.answer(2)
    qemu.answer("running")
    assert not latest.are_late()
    with _meanwhile(lambda: qemu.answer(3)), latest.patient(_PATIENCE_S):
        assert latest.execute("query-balloon") == 3


def test_what_was_said_last_does_not_outlive_a_refusal_or_the_connection(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    latest = LatestAnswers(monitor)
    with latest.patient(_PATIENCE_S):
        with _meanwhile(lambda: qemu.answer(1), lambda: qemu.refuse({"desc": "no balloon"})):
            assert latest.execute("query-balloon") == 1
            with pytest.raises(QmpError, match="no balloon"):
                latest.execute("query-balloon")
        with _meanwhile(lambda: qemu.answer(1)):
            assert latest.execute("query-balloon") == 1
        qemu.hang_up()
        with pytest.raises(QmpError, match="connection ended"):
            latest.execute("query-balloon")


def _balloon_and_status(latest: LatestAnswers) -> tuple[object, object]:
    return latest.execute("query-balloon"), latest.execute("query-status")


def test_who_asks_ahead_waits_for_nothing_and_has_what_was_answered(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    latest = LatestAnswers(monitor)

    def look() -> None:
        for command in ("query-balloon", "query-status"):
            with contextlib.suppress(QmpError):
                latest.execute(command)

    for number in (1, 2):
        ahead = latest.ahead(look)
        assert next(ahead) > 0
        assert next(ahead) > 0, "it is not answered yet"
        qemu.answer(number)
        qemu.answer("running")
        with pytest.raises(StopIteration) as end:
            next(ahead)
        assert end.value.value is True
        with latest.told():
            assert _balloon_and_status(latest) == (number, "running")
            assert _balloon_and_status(latest) == (number, "running"), "and is asked no more"
    assert not select.select([qemu.socket], [], [], 0)[0]


def test_a_qemu_that_is_stuck_is_given_up_and_what_it_said_last_is_told(
    monitor: QmpConnection, qemu: _Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uffdballoon.vmm.qemu.latest._PATIENCE_S", 0.0)
    latest = LatestAnswers(monitor)
    with latest.patient(_PATIENCE_S), _meanwhile(lambda: qemu.answer(1)):
        latest.execute("query-balloon")
    assert run_job(latest.ahead(lambda: latest.execute("query-balloon"))) is False
    with latest.told():
        assert latest.execute("query-balloon") == 1
        with pytest.raises(QmpError, match="no answer yet"):
            latest.execute("query-status")


def test_a_vm_is_paused_after_its_touches_were_let_go(monitor: QmpConnection, qemu: _Qemu) -> None:
    said: list[str] = []

    def let_go() -> None:
        said.append("let go")
        said.append(qemu.answer({})["execute"])

    run_job(stopping_vm(monitor, let_go))
    assert said == ["let go", "stop"]


def test_a_vm_that_is_being_paused_has_a_turn_for_others(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    said: list[str] = []
    job = stopping_vm(monitor, lambda: said.append("let go"))
    assert next(job) > 0
    assert not said, "QEMU has not had the time to read it"
    qemu.answer({})
    with pytest.raises(StopIteration):
        next(job)
    assert said == ["let go"]


def test_touches_are_let_go_when_a_pause_is_given_up(monitor: QmpConnection) -> None:
    said: list[str] = []
    job = stopping_vm(monitor, lambda: said.append("let go"))
    next(job)
    job.close()
    assert said == ["let go"]


def test_touches_are_let_go_where_the_vm_cannot_be_paused(
    monitor: QmpConnection, qemu: _Qemu
) -> None:
    qemu.hang_up()
    monitor.take_events()
    said: list[str] = []
    with pytest.raises(QmpError, match="not paused") as refused:
        run_job(stopping_vm(monitor, lambda: said.append("let go")))
    assert said == ["let go"]
    assert "connection ended" in refused.value.why
