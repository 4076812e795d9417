# SPDX-License-Identifier: GPL-2.0-or-later
"""The manager over a session that does as it is told: what ends it, and what does not.

The session is a stand-in, so that it can fail at will; a real one is in tests/system.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from msgspec import UNSET

from tests.support.runtime import use_runtime
from uffdballoon.daemon import client
from uffdballoon.daemon.manager import Ending, Manager
from uffdballoon.errors import ControlError, RangeError, UsageError
from uffdballoon.model.origin import Origin
from uffdballoon.model.part import Source, Tick
from uffdballoon.model.records.changes import ChangeReport, Detaching, Released
from uffdballoon.model.records.encoding import parse, read
from uffdballoon.model.records.events import EventKind, Notice, TouchEvent
from uffdballoon.model.records.spans import Span
from uffdballoon.model.records.status import Status
from uffdballoon.model.touch import Access, Action, Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.addresses import GpaRange
    from uffdballoon.model.granule import Granule
    from uffdballoon.model.job import Job
    from uffdballoon.model.records.events import Event
    from uffdballoon.session import Session

PID = 4711
_PATIENCE_S = 20.0
_STATUS = Path(__file__).parents[1] / "data" / "json" / "status-grace.json"
_TOUCH = TouchEvent(
    time_ns=1,
    kind=EventKind.VIOLATION,
    gpa=4096,
    size=4096,
    vcpu=0,
    tid=7,
    access=Access.WRITE,
    verdict=Verdict.VIOLATION,
    action=Action.GRANT,
    role=Role.VCPU,
    sequence=1,
    answer_ns=1,
    pid=PID,
    vm="web1",
)


class _Part:
    """A part that tells what is given to it, once; its fd is ready when it is written to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.failure: Exception | None = None
        self.events: list[Event] = []

    def sources(self) -> list[Source]:
        return [Source(self.name, self.fd, self._on_ready)]

    def tick(self) -> Tick:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        events, self.events = self.events, []
        return Tick(events)

    def _on_ready(self) -> bool:
        os.eventfd_read(self.fd)
        return False

    def wait_until_failed(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self.failure is not None:
            assert time.monotonic() < deadline
            time.sleep(0.001)


class _Touches(_Part):
    """The part whose events come in batches, if they are to without end."""

    def __init__(self) -> None:
        super().__init__("touches")
        self.endless = False

    def take(self) -> list[Event]:
        """Take a batch, as the session does at the beginning and in the end, too."""
        if self.endless:
            return [_TOUCH]
        events, self.events = self.events, []
        return events

    def _on_ready(self) -> bool:
        self.events = self.take()
        return bool(self.events)


class _Told:
    """An output that keeps what it is told, or fails."""

    unwritten = 3

    def __init__(self, told: list[Event], *, fails: bool = False) -> None:
        self._told = told
        self._fails = fails

    def write(self, event: Event) -> None:
        if self._fails:
            raise OSError(28, "No space left on device")
        self._told.append(event)

    def flush(self) -> float | None:
        return None

    def close(self) -> None:
        pass


class _Session:
    """What a manager needs of a session, which does as it is told."""

    def __init__(self) -> None:
        self.touches = _Touches()
        self.follower = _Part("follower")
        self.parts = (self.follower, self.touches)
        self.origin = Origin(PID, "web1")
        self.target = SimpleNamespace(pid=PID, pidfd=os.eventfd(0, os.EFD_NONBLOCK))
        self.took: list[str] = []
        self.steps = 3
        self.reaches_monitor = False

    def close(self) -> None:
        for fd in (self.target.pidfd, *(part.fd for part in self.parts)):
            os.close(fd)

    def drain_events(self) -> list[Event]:
        return self.touches.take()

    def drain_monitor(self) -> list[Event]:
        return []

    def reporting(self) -> Job[Status]:
        yield 0.0
        return read(parse(_STATUS.read_text()), Status)

    def release(self, tid: int | None) -> int:
        return tid or 0

    def inflating(
        self, spans: list[GpaRange], granule: Granule, *, guest_agreed: bool
    ) -> Job[ChangeReport]:
        assert (granule.value, guest_agreed) == ("4k", True)
        name = hex(spans[0].start)
        try:
            for _ in range(self.steps):
                self.took.append(name)
                yield 0.0
        finally:
            self.took.append(f"{name} put right")
        return ChangeReport(
            requested_bytes=spans[0].size_bytes,
            done_bytes=spans[0].size_bytes,
            left_out=(),
            ranges=tuple(map(Span.of, spans)),
        )


class _Running:
    """A manager, run by the main thread while the test asks from another one."""

    def __init__(self, session: _Session, manager: Manager) -> None:
        self.session = session
        self.manager = manager

    def during(self, act: Any) -> Ending:  # noqa: ANN401 - a function of no arguments
        """Run the manager to its end, and ``act`` beside it; raise what that raises."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001 - it is raised by the test's own thread
                failed.append(error)
                os.eventfd_write(self.session.target.pidfd, 1)

        thread = threading.Thread(target=run)
        thread.start()
        ending = self.manager.run()
        self.manager.close()  # the last answers go out
        thread.join()
        for error in failed:
            raise error
        return ending


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Session]:
    use_runtime(monkeypatch, tmp_path)
    session = _Session()
    yield session
    session.close()


@pytest.fixture
def running(session: _Session, told: list[Event]) -> Iterator[_Running]:
    with Manager(cast("Session", session), outputs=[_Told(told)]) as manager:
        yield _Running(session, manager)


def _detach() -> None:
    client.request(PID, "detach", Detaching)


def _inflate(gpa: int) -> ChangeReport:
    what = {"gpa": gpa, "size": 4096, "granule": "4k"}
    return client.request(PID, "inflate", ChangeReport, guest_agreed=True, **what)


def test_it_ends_detached(running: _Running) -> None:
    assert running.during(_detach) is Ending.DETACHED


def test_the_garbage_collector_walks_nothing_that_was_there_before(running: _Running) -> None:
    before, frozen = gc.get_freeze_count(), []

    def look() -> None:
        client.status(PID)
        frozen.append(gc.get_freeze_count())
        _detach()

    running.during(look)
    assert frozen[0] > before
    assert gc.get_freeze_count() == before


def test_it_ends_on_a_signal_and_gives_the_handlers_back(session: _Session) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Manager(cast("Session", session)) as manager:
        running = _Running(session, manager)
        assert running.during(lambda: os.kill(os.getpid(), signal.SIGTERM)) is Ending.SIGNAL
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_ends_with_the_target(running: _Running) -> None:
    ended = running.during(lambda: os.eventfd_write(running.session.target.pidfd, 1))
    assert ended is Ending.TARGET_GONE


def test_it_ends_at_a_violation_if_it_is_to(session: _Session, told: list[Event]) -> None:
    session.touches.events = [_TOUCH]
    with Manager(
        cast("Session", session), outputs=[_Told(told)], fail_on_violation=True
    ) as manager:
        assert manager.run() is Ending.VIOLATION
    assert told == [_TOUCH]


@pytest.mark.parametrize("end", [_detach, lambda: os.kill(os.getpid(), signal.SIGTERM)])
def test_a_guest_that_touches_without_end_holds_up_nobody(running: _Running, end: Any) -> None:  # noqa: ANN401
    running.session.touches.endless = True
    os.eventfd_write(running.session.touches.fd, 1)

    def ask() -> None:
        assert client.status(PID).loop is not UNSET
        end()

    running.during(ask)


@pytest.mark.parametrize(
    "failure", [RangeError("the windows are gone"), OSError(24, "Too many open files")]
)
def test_a_part_that_fails_is_told_and_ticked_again(
    running: _Running, told: list[Event], failure: Exception
) -> None:
    running.session.follower.failure = failure

    def ask() -> None:
        running.session.follower.wait_until_failed()
        running.session.follower.failure = failure
        running.session.follower.wait_until_failed()  # again, without having been asked to
        _detach()

    assert running.during(ask) is Ending.DETACHED
    (event,) = told  # the second time it is the same failure
    assert isinstance(event, Notice)
    assert event.kind is EventKind.FAILED
    assert str(failure) in str(event.why)


def test_an_output_that_fails_costs_those_who_follow_nothing(
    session: _Session, told: list[Event]
) -> None:
    session.touches.events = [_TOUCH, _TOUCH]

    with Manager(cast("Session", session), outputs=[_Told(told, fails=True)]) as manager:
        seen: list[Event] = []

        def ask() -> None:
            seen.extend(client.recent_events(PID))
            _detach()

        assert _Running(session, manager).during(ask) is Ending.DETACHED
    assert seen.count(_TOUCH) == 2
    (failed,) = (event for event in seen if isinstance(event, Notice))
    assert failed.kind is EventKind.FAILED
    assert "No space left on device" in str(failed.why)


@pytest.mark.parametrize("tid", [99999999999999999999, -1, 0, 1.5, "7", True])
def test_a_thread_that_is_none_is_refused_and_nothing_else_happens(
    running: _Running, tid: object
) -> None:
    def ask() -> None:
        with pytest.raises(UsageError, match="no thread"):
            client.request(PID, "release", Released, tid=tid)
        assert client.request(PID, "release", Released, tid=12) == Released(released=12)
        _detach()

    assert running.during(ask) is Ending.DETACHED


@pytest.mark.parametrize(
    "what",
    [
        {"gpa": 1 << 70, "size": 4096},
        {"gpa": 0, "size": 1 << 70},
        {"gpa": 0.5, "size": 4096},
        {"ranges": []},
        {"ranges": [[0]]},
        {"ranges": [[0, True]]},
        {"ranges": [[0, 4096]] * 1001},
        {"ranges": "all"},
        {"node": 1 << 70},
        {"node": 0, "size": -1},
        {"nodes": [[0, 4096], [0, 4096]]},
        {"nodes": [[0]]},
    ],
)
def test_ranges_that_are_none_are_refused(running: _Running, what: dict[str, object]) -> None:
    def ask() -> None:
        with pytest.raises(UsageError):
            client.request(PID, "inflate", ChangeReport, granule="4k", guest_agreed=True, **what)
        _detach()

    assert running.during(ask) is Ending.DETACHED


def test_changes_come_one_after_the_other_and_others_are_served_meanwhile(
    running: _Running,
) -> None:
    running.session.steps = 200
    done: list[ChangeReport] = []

    def ask() -> None:
        threads = [
            threading.Thread(target=lambda gpa=gpa: done.append(_inflate(gpa)))
            for gpa in (0x1000, 0x2000)
        ]
        for thread in threads:
            thread.start()
            assert client.status(PID).loop is not UNSET
        for thread in threads:
            thread.join()
        _detach()

    assert running.during(ask) is Ending.DETACHED
    assert len(done) == 2
    took = running.session.took
    middle = len(took) // 2
    assert len(set(took[: middle - 1])) == 1
    assert len(set(took[middle:-1])) == 1


def test_a_change_that_is_under_way_when_it_ends_is_put_right(
    session: _Session, told: list[Event]
) -> None:
    session.steps = 1 << 30
    with Manager(cast("Session", session), outputs=[_Told(told)]) as manager:

        def ask() -> None:
            def inflate() -> None:
                with pytest.raises(ControlError, match="hung up"):
                    _inflate(0x1000)

            asking.append(threading.Thread(target=inflate))
            asking[0].start()
            deadline = time.monotonic() + _PATIENCE_S
            while not session.took:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            _detach()

        asking: list[threading.Thread] = []
        assert _Running(session, manager).during(ask) is Ending.DETACHED
    asking[0].join()
    assert session.took[-1] == "0x1000 put right"


def test_a_manager_that_cannot_be_made_leaves_no_socket(
    session: _Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail() -> list[Source]:
        raise RangeError("no")

    monkeypatch.setattr(session.follower, "sources", fail)
    with pytest.raises(RangeError):
        Manager(cast("Session", session))
    assert list((tmp_path / "uffdballoon").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
