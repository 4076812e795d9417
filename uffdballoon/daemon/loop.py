# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources, timers, jobs and signals: one turn after the other, each of them bounded.

It knows no fd by name. Whatever is called stands behind one error boundary: what fails
is told, and the rest goes on, for a guest whose manager ends is not enforced any more.
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.model.part import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from uffdballoon.model.job import Job

_LEFT_ALONE_S = 1.0
"""A source or timer that failed: what it failed at is mostly still there."""
_LONG_TURN_S = 0.01
"""A turn that lasted so long begins no other job's step: each may take as long by itself."""
_SHORTEST_SLEEP_S = 0.001  # epoll_wait(2) rounds up to it


class Ready(enum.IntFlag):
    """What an fd is ready for."""

    READ = selectors.EVENT_READ
    WRITE = selectors.EVENT_WRITE


class _Watched:
    """An fd as the loop knows it; ``act`` is given what it is ready for."""

    def __init__(self, name: str, fd: int, act: Callable[[Ready], bool], wanted: Ready) -> None:
        self.name = name
        self.fd = fd
        self.act = act
        self.wanted = wanted
        self.alone_until: float | None = None


class Timer:
    """Something that is due once in a while; as often as anybody asks, the earliest wins."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.name = name
        self.act = act
        self.due: float | None = None

    def within(self, seconds: float) -> None:
        """Have it called in ``seconds`` at the latest."""
        at = time.monotonic() + seconds
        self.due = at if self.due is None else min(self.due, at)


@dataclass(slots=True)
class _Running:
    """A job that is under way; exactly one of the two is called in its end."""

    name: str
    job: Job[Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    due: float = 0.0


@dataclass(slots=True)
class LoopCounts:
    """What the loop did so far; a turn is measured without its sleep."""

    turns: int = 0
    failures: int = 0
    longest_turn_s: float = field(default=0.0)


class Loop:
    """To be used by one thread; ``failed`` is told what the error boundary caught, and where."""

    def __init__(self, failed: Callable[[str, Exception], None]) -> None:
        self.counts = LoopCounts()
        self._failed = failed
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, _Watched] = {}
        self._alone: list[_Watched] = []
        self._more: list[_Watched] = []
        self._timers: list[Timer] = []
        self._jobs: list[_Running] = []
        self._jobs_waited = False
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Put right what jobs are in the middle of, and forget all; unwatch() is no error then."""
        for running in self._jobs:
            self._guard(running.name, running.job.close)
        self._jobs.clear()
        self._watched.clear()
        self._selector.close()

    def add(self, source: Source) -> None:
        """Watch a source for as long as the loop is there."""
        self.watch(source.name, source.fd, lambda _: source.on_ready())

    def watch(
        self, name: str, fd: int, act: Callable[[Ready], bool], wanted: Ready = Ready.READ
    ) -> None:
        """Have ``act`` called in each turn in which the fd is ready for what is wanted."""
        watched = _Watched(name, fd, act, wanted)
        self._selector.register(fd, wanted, watched)
        self._watched[fd] = watched

    def want(self, fd: int, wanted: Ready) -> None:
        """Change what an fd that is watched is watched for."""
        watched = self._watched[fd]
        if watched.wanted != wanted:
            watched.wanted = wanted
            if watched.alone_until is None:
                self._selector.modify(fd, wanted, watched)

    def leave_alone(self, fd: int, seconds: float) -> None:
        """Do not look at an fd for so long: what it is ready for cannot be done now."""
        watched = self._watched[fd]
        if watched.alone_until is None:
            self._selector.unregister(fd)
            self._alone.append(watched)
        watched.alone_until = time.monotonic() + seconds

    def unwatch(self, fd: int) -> None:
        """Forget an fd, also in the middle of the turn in which it is ready; none is no error."""
        watched = self._watched.pop(fd, None)
        if watched is None:
            return
        if watched.alone_until is None:
            self._selector.unregister(fd)
        else:
            self._alone.remove(watched)

    def timer(self, name: str, act: Callable[[], None]) -> Timer:
        """Return a timer that is not due yet."""
        timer = Timer(name, act)
        self._timers.append(timer)
        return timer

    def start(
        self,
        name: str,
        job: Job[Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Step a job from the next turn on; tell its report, or the error that it raised."""
        self._jobs.append(_Running(name, job, done, failed))

    @property
    def is_working(self) -> bool:
        """Tell whether a job is under way."""
        return bool(self._jobs)

    def end(self) -> None:
        """Have run() return before it calls anything else."""
        self._ended = True

    def run(self) -> None:
        """Take turns until end()."""
        while not self._ended:
            self.turn()

    def turn(self) -> None:
        """Sleep until something is to be done, and do a bounded part of each."""
        ready = self._selector.select(self._sleep_s())
        began = time.monotonic()
        self._look_again(began)
        more, self._more = self._more, []
        calls: list[tuple[_Watched, Ready]] = [(key.data, Ready(mask)) for key, mask in ready]
        told = {watched for watched, _ in calls}
        calls += [(left, Ready.READ) for left in more if left not in told]
        for watched, mask in calls:
            if self._ended:
                break
            # What was called before it may have unwatched it, and closed its fd.
            if self._watched.get(watched.fd) is watched and watched.alone_until is None:
                self._call(watched, mask)
        self._fire(time.monotonic())  # what was asked for in this turn is due in it, too
        self._step(began)
        self.counts.turns += 1
        self.counts.longest_turn_s = max(self.counts.longest_turn_s, time.monotonic() - began)

    def _sleep_s(self) -> float | None:
        if self._more or self._ended:
            return 0.0
        dues = [
            *(timer.due for timer in self._timers if timer.due is not None),
            *(running.due for running in self._jobs),
            *(watched.alone_until for watched in self._alone if watched.alone_until is not None),
        ]
        if not dues:
            return None
        left_s = min(dues) - time.monotonic()
        return left_s if left_s >= _SHORTEST_SLEEP_S else 0.0

    def _look_again(self, now: float) -> None:
        """Watch again what was left alone for long enough."""
        back = [w for w in self._alone if w.alone_until is not None and w.alone_until <= now]
        for due in back:
            self._alone.remove(due)
            due.alone_until = None
            self._selector.register(due.fd, due.wanted, due)

    def _call(self, watched: _Watched, mask: Ready) -> None:
        try:
            if watched.act(mask):
                self._more.append(watched)
        except Exception as error:  # noqa: BLE001 - the boundary
            self.report(watched.name, error)
            if watched.fd in self._watched:
                self.leave_alone(watched.fd, _LEFT_ALONE_S)

    def _fire(self, now: float) -> None:
        for timer in self._timers:
            if not self._ended and timer.due is not None and timer.due <= now:
                timer.due = None
                self.fire(timer)

    def fire(self, timer: Timer) -> None:
        """Call what a timer calls, before it is due, too; once it fails it is due again."""
        if not self._guard(timer.name, timer.act):
            timer.within(_LEFT_ALONE_S)

    def _step(self, began: float) -> None:
        """Step jobs that are due, what waits for longest first, until the turn is a long one.

        The others are first in the next one. Where sources and timers made it long already none
        is stepped, but not twice in a row.
        """
        due = sorted((r for r in self._jobs if r.due <= began), key=lambda running: running.due)
        if due and not self._jobs_waited and self._is_long(began):
            self._jobs_waited = True
            return
        self._jobs_waited = False
        for running in due:
            if self._ended:
                break
            self._step_one(running)
            if self._is_long(began):
                break

    @staticmethod
    def _is_long(began: float) -> bool:
        return time.monotonic() - began >= _LONG_TURN_S

    def _step_one(self, running: _Running) -> None:
        try:
            running.due = time.monotonic() + next(running.job)
        except StopIteration as end:
            report = end.value
            self._jobs.remove(running)
            self._guard(running.name, lambda: running.done(report))
        except Exception as error:  # noqa: BLE001 - the boundary
            caught = error
            self._jobs.remove(running)
            self._guard(running.name, lambda: running.failed(caught))

    def _guard(self, name: str, act: Callable[[], object]) -> bool:
        """Call something; tell its error, and return whether there was none."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the boundary
            self.report(name, error)
            return False
        return True

    def report(self, name: str, error: Exception) -> None:
        """Tell an error that cost nobody anything but what it is about."""
        self.counts.failures += 1
        with contextlib.suppress(Exception):  # whoever tells may be what fails
            self._failed(name, error)


class Signals:
    """Signals as a source, for as long as the context lasts; the handlers of before return."""

    def __init__(self, numbers: Iterable[signal.Signals], act: Callable[[], None]) -> None:
        self._numbers = frozenset(numbers)
        self._act = act
        self._signalled, self._signal_end = socket.socketpair()
        self._signalled.settimeout(0)
        self._signal_end.settimeout(0)
        self._wakeup_before = signal.set_wakeup_fd(
            self._signal_end.fileno(), warn_on_full_buffer=False
        )
        self._before = {number: signal.signal(number, _ignore) for number in self._numbers}
        self.source = Source("signals", self._signalled.fileno(), self._take)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._signalled.close()
        self._signal_end.close()

    def _take(self) -> bool:
        if self._numbers & set(self._signalled.recv(64)):
            self._act()
        return False


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the wakeup fd tells the loop."""
