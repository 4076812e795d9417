# SPDX-License-Identifier: GPL-2.0-or-later
"""The manager's loop: bounded turns, jobs, and one error boundary."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from uffdballoon.daemon.loop import Loop, Ready, Signals
from uffdballoon.model.job import Turn, run_job
from uffdballoon.model.part import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.job import Job


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def loop(failures: list[str]) -> Iterator[Loop]:
    with Loop(lambda name, error: failures.append(f"{name}: {error}")) as loop:
        yield loop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def _counting(steps: int, done: list[str], away_s: float = 0.0) -> Job[int]:
    try:
        for _ in range(steps):
            done.append("step")
            yield away_s
    finally:
        done.append("put right")
    return steps


def test_a_source_that_always_has_more_leaves_a_turn_to_the_others(
    loop: Loop, pipe: tuple[int, int]
) -> None:
    events, others = 0, []

    def drain() -> bool:
        nonlocal events
        events += 1
        return True

    os.write(pipe[1], b"x")
    loop.add(Source("events", pipe[0], drain))
    loop.timer("timer", lambda: others.append("timer")).within(0.0)
    loop.start("job", _counting(2, others), lambda _: others.append("done"), lambda _: None)
    for _ in range(4):
        loop.turn()
    assert others == ["timer", "step", "step", "put right", "done"]
    assert events == 4


def test_what_fails_is_told_left_alone_and_tried_again(
    loop: Loop, failures: list[str], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uffdballoon.daemon.loop._LEFT_ALONE_S", 0.01)
    calls = 0

    def fail_once() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("once")
        os.read(pipe[0], 1)
        return False

    os.write(pipe[1], b"x")
    loop.add(Source("source", pipe[0], fail_once))
    loop.turn()
    assert failures == ["source: once"]
    while calls < 2:
        loop.turn()  # it sleeps until the source is looked at again
    assert failures == ["source: once"]
    assert loop.counts.failures == 1


def test_a_timer_that_fails_fires_again(
    loop: Loop, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uffdballoon.daemon.loop._LEFT_ALONE_S", 0.01)

    def fail_twice() -> None:
        if len(failures) < 2:
            raise KeyError("no")
        loop.end()

    loop.timer("upkeep", fail_twice).within(0.0)
    loop.run()
    assert failures == ["upkeep: 'no'"] * 2


def test_who_is_told_of_failures_may_fail() -> None:
    def fail(_name: str, _error: Exception) -> None:
        raise OSError("no space left")

    with Loop(fail) as loop:
        loop.timer("a", lambda: fail("", OSError())).within(0.0)
        loop.turn()
        assert loop.counts.failures == 1


def test_a_source_may_be_taken_away_by_another_in_its_own_turn(
    loop: Loop, failures: list[str]
) -> None:
    first, second = os.eventfd(1), os.eventfd(1)
    called = []

    def take_away(other: int) -> bool:
        called.append(other)
        loop.unwatch(other)
        loop.unwatch(other)  # once more is no error
        os.close(other)
        return False

    loop.watch("first", first, lambda _: take_away(second))
    loop.watch("second", second, lambda _: take_away(first))
    loop.turn()
    assert len(called) == 1
    assert failures == []
    os.close(({first, second} - set(called)).pop())


def test_a_job_ends_with_its_report_or_its_error(loop: Loop) -> None:
    ended: list[object] = []
    done: list[str] = []

    def failing() -> Job[None]:
        yield 0.0
        raise ValueError("no")

    loop.start("good", _counting(3, done), ended.append, ended.append)
    loop.start("bad", failing(), ended.append, ended.append)
    while loop.is_working:
        loop.turn()
    assert str(ended[0]) == "no"
    assert ended[1] == 3


def test_a_job_stays_away_for_as_long_as_it_says(loop: Loop) -> None:
    done: list[str] = []
    loop.start("job", _counting(3, done, away_s=0.02), lambda _: None, lambda _: None)
    began = time.monotonic()
    while loop.is_working:
        loop.turn()
    assert time.monotonic() - began >= 0.06
    assert loop.counts.turns < 20  # it sleeps meanwhile


def test_in_a_long_turn_one_job_is_stepped_and_each_in_its_turn(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uffdballoon.daemon.loop._LONG_TURN_S", 0.0)
    steps: list[str] = []

    def stepping(name: str) -> Job[None]:
        while True:
            steps.append(name)
            yield 0.0

    for name in "abc":
        loop.start(name, stepping(name), lambda _: None, lambda _: None)
    for _ in range(12):
        before = len(steps)
        loop.turn()
        assert len(steps) <= before + 1
    assert steps == [*"abcabc"], "others had every second turn"


def test_a_job_that_is_left_in_the_middle_puts_right_what_it_must() -> None:
    done: list[str] = []
    with Loop(lambda _name, _error: None) as loop:
        loop.start("job", _counting(3, done), lambda _: None, lambda _: None)
        loop.turn()
    assert done == ["step", "put right"]


def test_without_a_loop_a_job_runs_to_its_end() -> None:
    assert run_job(_counting(3, [])) == 3


def test_a_turn_is_over_when_its_time_is() -> None:
    turn = Turn(0.001)
    while not turn.is_over():
        pass
    assert not Turn(60.0).is_over()


def test_a_signal_is_a_source_and_its_handler_of_before_returns(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    signals = Signals([signal.SIGUSR1], loop.end)
    try:
        loop.add(signals.source)
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.run()
    finally:
        signals.close()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_an_fd_is_watched_for_what_is_wanted_now(loop: Loop, pipe: tuple[int, int]) -> None:
    seen = []

    def act(ready: Ready) -> bool:
        seen.append(ready)
        loop.end()
        return False

    loop.watch("writer", pipe[1], act, Ready.READ)
    loop.want(pipe[1], Ready.READ | Ready.WRITE)
    loop.run()
    assert seen == [Ready.WRITE]
