# SPDX-License-Identifier: GPL-2.0-or-later
"""What the terminal of an attach is told: what matters at once, the rest as a count."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from uffdballoon.cli import terminal as module
from uffdballoon.cli.terminal import Terminal, Verbosity
from uffdballoon.daemon.sinks import StreamSink
from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.touch import Access, Action, Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class _Watched:
    """A terminal of a pipe, and what was written to it since the last look."""

    def __init__(self, verbosity: Verbosity) -> None:
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(writer, False)
        self.terminal = Terminal(StreamSink("stderr", writer), verbosity)

    def lines(self) -> list[str]:
        try:
            return os.read(self.reader, 1 << 16).decode().splitlines()
        except BlockingIOError:
            return []

    def close(self) -> None:
        self.terminal.close()
        os.close(self.reader)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def watched(clock: _Clock) -> Iterator[_Watched]:
    assert clock.now
    watched = _Watched(Verbosity.USUAL)
    yield watched
    watched.close()


def _touch(action: Action, verdict: Verdict = Verdict.VIOLATION) -> TouchEvent:
    return TouchEvent(
        time_ns=0,
        kind=EventKind(verdict.value),
        gpa=0x1000,
        size=4096,
        vcpu=1,
        tid=17,
        access=Access.WRITE,
        verdict=verdict,
        action=action,
        role=Role.VCPU,
        sequence=1,
        answer_ns=1,
    )


def test_the_first_violation_is_told_at_once_and_the_others_are_counted(
    watched: _Watched, clock: _Clock
) -> None:
    for _ in range(1000):
        watched.terminal.write(_touch(Action.ZERO_READ))
    assert len(lines := watched.lines()) == 1
    assert "violation write gpa 0x1000 size 4096 vcpu 1 -> zero-read" in lines[0]
    assert watched.terminal.flush() == 1.0
    assert watched.lines() == []
    clock.now += 1.0
    assert watched.terminal.flush() is None
    assert watched.lines() == ["uffdballoon: 999 more violation (zero-read)"]


def test_there_is_a_summary_a_second_at_most(watched: _Watched, clock: _Clock) -> None:
    told = []
    for _ in range(50):
        watched.terminal.write(_touch(Action.GRANT, Verdict.GRANTED))
        watched.terminal.write(_touch(Action.ZERO_READ))
        watched.terminal.flush()
        told += watched.lines()
        clock.now += 0.1
    assert len(told) <= 2 + 5


def test_what_is_done_to_the_guest_is_told_each_second(watched: _Watched, clock: _Clock) -> None:
    for _ in range(3):
        watched.terminal.write(_touch(Action.PAUSE))
        watched.terminal.write(notice(EventKind.PAUSED))
        clock.now += 1.0
    assert [line.split()[2] for line in watched.lines()] == ["violation", "paused"] * 3


def test_a_reset_and_a_lost_monitor_are_told_at_once(watched: _Watched) -> None:
    watched.terminal.write(notice(EventKind.RESET))
    watched.terminal.write(notice(EventKind.MONITOR_LOST, "QEMU ended the connection"))
    assert len(watched.lines()) == 2


def test_what_was_counted_last_is_told_in_the_end(watched: _Watched) -> None:
    for _ in range(3):
        watched.terminal.write(_touch(Action.GRANT, Verdict.GRANTED))
    assert len(watched.lines()) == 1
    reader = os.dup(watched.reader)
    watched.close()
    watched.close = lambda: None  # type: ignore[method-assign]
    assert os.read(reader, 4096) == b"uffdballoon: 2 more granted (grant)\n"
    os.close(reader)


@pytest.mark.parametrize(("verbosity", "count"), [(Verbosity.ALL, 100), (Verbosity.QUIET, 0)])
def test_all_or_nothing_is_told_when_asked_for(verbosity: Verbosity, count: int) -> None:
    watched = _Watched(verbosity)
    for _ in range(100):
        watched.terminal.write(_touch(Action.ZERO_READ))
    assert len(watched.lines()) == count
    watched.close()


def test_a_terminal_that_nobody_reads_holds_nobody_up() -> None:
    watched = _Watched(Verbosity.ALL)
    for _ in range(5000):
        watched.terminal.write(_touch(Action.ZERO_READ))
    assert watched.lines()
    os.close(watched.reader)
    watched.terminal.write(_touch(Action.ZERO_READ))
    assert watched.terminal.flush() is None
    watched.terminal.close()
