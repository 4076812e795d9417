# SPDX-License-Identifier: GPL-2.0-or-later
"""A running attach: what its loop serves, until something ends it."""

from __future__ import annotations

import contextlib
import enum
import gc
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.daemon import requests
from uffdballoon.daemon.control import ControlServer
from uffdballoon.daemon.lockdown import lock_down, stay_open
from uffdballoon.daemon.loop import Loop, Signals
from uffdballoon.daemon.policy_requests import wish_of
from uffdballoon.daemon.upkeep import Upkeep
from uffdballoon.errors import ControlError, TargetGoneError
from uffdballoon.model.notice import notice
from uffdballoon.model.part import Source
from uffdballoon.model.records.balloon import LimitChange
from uffdballoon.model.records.changes import Detaching, Released, TakenUp, Yielded
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.records.status import LoopStatus, ManagerStatus
from uffdballoon.model.touch import Verdict
from uffdballoon.session.policies import change_notice
from uffdballoon.session.previewing import previewing
from uffdballoon.session.recording import listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from uffdballoon.daemon.loop import Timer
    from uffdballoon.daemon.outputs import Output
    from uffdballoon.model.addresses import GpaRange
    from uffdballoon.model.job import Job
    from uffdballoon.model.records.balloon import BalloonProgress
    from uffdballoon.model.records.changes import ChangeReport, InflatePreview
    from uffdballoon.model.records.events import Event
    from uffdballoon.model.records.maps import WireMap
    from uffdballoon.model.records.policy import PolicyChange
    from uffdballoon.model.records.statistics import RecordedBalloon
    from uffdballoon.model.records.status import Status
    from uffdballoon.session import Session

_FAILURE_TOLD_S = 10.0
"""The same failure is told as often as this at most."""
_LAST_BATCHES = 1024
_WAITS_ITS_TURN_S = 0.01
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending(enum.Enum):
    """Why a manager ended."""

    DETACHED = "detached"
    SIGNAL = "signal"
    TARGET_GONE = "target gone"
    VIOLATION = "violation"


class Manager:
    """Serves a session until something ends it; the session stays the caller's.

    Ends when it is detached, signalled, when the target has ended, or, if it is to, at
    a violation. Whatever else fails is told as an event of kind ``failed``, and it goes on.
    """

    def __init__(
        self,
        session: Session,
        *,
        outputs: Sequence[Output] = (),
        fail_on_violation: bool = False,
        sandbox: bool = False,
    ) -> None:
        """Listen; with ``sandbox``, give up what is not needed from here on, for good.

        ``outputs`` stay the caller's.
        """
        self._session = session
        self._fail_on_violation = fail_on_violation
        self._ending: Ending | None = None
        self._since_ns = time.time_ns()
        self._changes: list[object] = []
        self._failures_told: dict[tuple[str, str], float] = {}
        self._verbs: dict[str, Callable[[dict[str, Any]], object]] = {
            "status": self._status,
            "events": lambda _: list(self._control.recent),
            "inflate": self._inflate,
            "deflate": self._deflate,
            "release": self._release,
            **dict.fromkeys(("yield", "take-up"), self._yield),
            "set": self._set,
            "policy": self._policy,
            "limit": self._limit,
            "progress": lambda _: session.balloon_progress(),
            "stats": lambda _: session.measuring(),
            "runs": self._runs,
            "changes": lambda _: session.tracing(),
            "ranges": lambda asked: listing(session.attached, requests.most_of(asked)),
            "verify": lambda _: session.verifying(),
            "map": self._map,
            "detach": self._detach,
        }
        with contextlib.ExitStack() as undo:
            self._loop = Loop(self._failed)
            self._control = ControlServer(session.origin, self._loop, self._handle)
            undo.callback(self._control.close)
            undo.callback(self._loop.close)  # what jobs are in the middle of comes first
            self._outputs = [(output, self._timer_of(output)) for output in outputs]
            self._upkeep = Upkeep(self._loop, session.parts, self._tell)
            signals = Signals(_SIGNALS, lambda: self._end(Ending.SIGNAL))
            undo.callback(signals.close)
            self._loop.add(signals.source)
            self._loop.add(Source("target", session.target.pidfd, self._target_ended))
            self.lockdown = lock_down(session.attached) if sandbox else stay_open()
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Answer who is still there, and listen no more."""
        self._undo.close()

    def run(self) -> Ending:
        """Serve until something ends it; by the clock only while something is going on."""
        with _sparing_the_collector():
            self._drain()  # an empty drain arms the eventfd
            self._loop.run()
            self._drain_last()
        assert self._ending is not None
        return self._ending

    def _end(self, ending: Ending) -> None:
        self._ending = self._ending or ending
        self._loop.end()

    def _failed(self, name: str, error: Exception) -> None:
        """Tell what the loop's boundary caught; of the target's end its pidfd tells."""
        if isinstance(error, TargetGoneError):
            return
        what = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if now - self._failures_told.get((name, what), -_FAILURE_TOLD_S) < _FAILURE_TOLD_S:
            return
        self._failures_told = {
            key: at for key, at in self._failures_told.items() if now - at < _FAILURE_TOLD_S
        }
        self._failures_told[name, what] = now
        self._tell(notice(EventKind.FAILED, f"{name}: {what}"))

    def _drain(self) -> bool:
        """Tell a batch of events; there are more, until a batch is empty."""
        events = self._session.drain_events()
        for event in events:
            self._tell(event)
        return bool(events)

    def _drain_last(self) -> None:
        """Tell what came until the end; a guest that goes on touching does not hold us up."""
        for _ in range(_LAST_BATCHES):
            if not self._drain():
                break

    def _drain_monitor(self) -> None:
        for event in self._session.drain_monitor():
            self._tell(event)
        self._upkeep.rouse(0.0)

    def _tell(self, event: Event) -> None:
        event = self._session.origin.mark(event)
        self._control.publish(event)
        for output, timer in self._outputs:
            try:
                output.write(event)
            except Exception as error:  # noqa: BLE001 - the others have it all the same
                self._loop.report("event output", error)
            if timer.due is None:
                timer.within(0.0)
        if self._fail_on_violation and event.verdict is Verdict.VIOLATION:
            self._end(Ending.VIOLATION)

    def _timer_of(self, output: Output) -> Timer:
        def flush() -> None:
            again_s = output.flush()
            if again_s is not None:
                timer.within(again_s)

        timer = self._loop.timer("event output", flush)
        return timer

    def _target_ended(self) -> bool:
        self._end(Ending.TARGET_GONE)
        return False

    def _handle(self, message: dict[str, Any]) -> object:
        verb = self._verbs.get(message["verb"])
        if verb is None:
            raise ControlError(
                f"there is no verb {message['verb']!r}", hint=f"there are {', '.join(self._verbs)}"
            )
        return verb(message)

    def _changing(self, job: Job[ChangeReport]) -> Job[ChangeReport]:
        """Change the balloon, one change after the other in the order in which they came."""
        ticket = object()
        self._changes.append(ticket)
        try:
            while self._changes[0] is not ticket:
                yield _WAITS_ITS_TURN_S
            report = yield from job
        finally:
            self._changes.remove(ticket)
        self._upkeep.rouse(0.0)
        return report

    def _inflate(self, message: dict[str, Any]) -> Job[ChangeReport] | Job[InflatePreview]:
        agreed = message.get("guest_agreed") is True
        if message.get("dry_run") is True:
            return self._preview(message)
        granule = requests.granule_of(message)
        if parts := requests.parts_of(message):
            job = self._session.inflating_nodes(parts, granule, guest_agreed=agreed)
            return self._changing(job)
        spans = requests.ranges_of(message, granule)
        self._refuse_outside_node(requests.node_of(message), spans)
        return self._changing(self._session.inflating(spans, granule, guest_agreed=agreed))

    def _preview(self, message: dict[str, Any]) -> Job[InflatePreview]:
        granule = requests.granule_of(message)
        attached = self._session.attached
        if parts := requests.parts_of(message):
            spans = attached.nodes.owned(parts, granule)
        else:
            spans = requests.ranges_of(message, granule)
            self._refuse_outside_node(requests.node_of(message), spans)
        return previewing(attached, spans, granule)

    def _deflate(self, message: dict[str, Any]) -> Job[ChangeReport]:
        if message.get("all") is True:
            return self._changing(self._session.deflating_all())
        granule = requests.granule_of(message)
        if parts := requests.parts_of(message):
            return self._changing(self._session.deflating_nodes(parts, granule))
        spans = requests.ranges_of(message, granule)
        self._refuse_outside_node(requests.node_of(message), spans)
        return self._changing(self._session.deflating(spans, granule))

    def _refuse_outside_node(self, node: int | None, spans: list[GpaRange]) -> None:
        if node is not None:
            for span in spans:
                self._session.refuse_outside_node(node, span)

    def _release(self, message: dict[str, Any]) -> Released:
        return Released(released=self._session.release(requests.tid_of(message)))

    def _yield(self, message: dict[str, Any]) -> Yielded | TakenUp:
        self._upkeep.rouse(0.0)
        by_hand, takes_up = self._session.yielding, message["verb"] == "take-up"
        return by_hand.take_up() if takes_up else by_hand.lift(requests.yield_of(message))

    def _status(self, _: dict[str, Any]) -> Job[Status]:
        told = yield from self._session.reporting()
        counts = self._loop.counts
        loop = LoopStatus(
            turns=counts.turns,
            longest_turn_us=round(counts.longest_turn_s * 1e6),
            failures=counts.failures,
            events_missed=self._control.events_missed,
            events_unwritten=sum(output.unwritten for output, _ in self._outputs),
        )
        self._drain_monitor()  # of RAM that was plugged in nobody tells unless it is looked for
        self._upkeep.rouse(0.0)  # goes on with a survey
        manager = ManagerStatus(
            pid=os.getpid(),
            since_ns=self._since_ns,
            monitor=self._session.reaches_monitor,
        )
        return replace(told, manager=manager, loop=loop, sandbox=self.lockdown.report())

    def _set(self, message: dict[str, Any]) -> BalloonProgress:
        asked = self._session.ask_balloon(requests.size_of(message))
        self._upkeep.rouse(0.0)
        return asked

    def _policy(self, message: dict[str, Any]) -> PolicyChange:
        change = self._session.policies.change(wish_of(message))
        if change.after != change.before:
            self._tell(change_notice(change))
        return change

    def _limit(self, message: dict[str, Any]) -> LimitChange:
        change = self._policy({"limit_bytes": requests.size_of(message)})
        return LimitChange(policy=change, driver=self._session.ask_for_floor())

    def _runs(self, _: dict[str, Any]) -> Job[RecordedBalloon]:
        return (yield from self._session.recording()).record()

    def _map(self, message: dict[str, Any]) -> Job[WireMap]:
        recent_s = requests.seconds_of(message)
        blocks = yield from self._session.mapping(recent_s)
        return replace(blocks, vm=self._session.origin.name).to_wire()

    def _detach(self, _: dict[str, Any]) -> Detaching:
        self._end(Ending.DETACHED)
        return Detaching(manager=os.getpid())


@contextlib.contextmanager
def _sparing_the_collector() -> Iterator[None]:
    """Have Python's garbage collector not look at what is there already.

    All that was imported is walked otherwise, now and then, in the middle of a turn: 10 ms.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
