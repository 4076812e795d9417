# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of a running attach: events, verbs, signals and the target's end."""

from __future__ import annotations

import enum
import os
import selectors
import signal
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.daemon.control import ControlServer
from uffdballoon.daemon.lockdown import lock_down, stay_open
from uffdballoon.errors import ControlError, RangeError, UsageError
from uffdballoon.model.addresses import GpaRange, round_up
from uffdballoon.model.granule import Granule
from uffdballoon.model.records.changes import Detaching, Released
from uffdballoon.model.sizes import format_size
from uffdballoon.model.touch import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from uffdballoon.model.records.balloon import BalloonProgress, Verification
    from uffdballoon.model.records.changes import ChangeReport
    from uffdballoon.model.records.events import Event
    from uffdballoon.model.records.maps import WireMap
    from uffdballoon.model.records.status import Status
    from uffdballoon.session import Session

_TIDY_AFTER_S = 1.0
"""After touches: how long windows that they may have emptied stay."""
_MOST_RECENT_S = 1e9
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending(enum.Enum):
    """Why a manager ended."""

    DETACHED = "detached"
    SIGNAL = "signal"
    TARGET_GONE = "target gone"
    VIOLATION = "violation"


class Manager:
    """Serves a session until something ends it; the session stays the caller's."""

    def __init__(
        self,
        session: Session,
        *,
        on_event: Callable[[Event], None],
        fail_on_violation: bool = False,
        sandbox: bool = False,
    ) -> None:
        """Listen; with ``sandbox``, give up what is not needed from here on, for good."""
        self._session = session
        self._on_event = on_event
        self._fail_on_violation = fail_on_violation
        self._ending: Ending | None = None
        self._selector = selectors.DefaultSelector()
        self._control = ControlServer(session.target.pid, self._selector, self._handle)
        self._verbs: dict[str, Callable[[dict[str, Any]], object]] = {
            "status": self._status,
            "events": lambda _: list(self._control.recent),
            "inflate": self._inflate,
            "deflate": self._deflate,
            "release": self._release,
            "set": self._set,
            "progress": lambda _: session.balloon_progress(),
            "stats": lambda _: session.statistics(),
            "runs": lambda _: session.recording().record(),
            "verify": self._verify,
            "map": self._map,
            "detach": self._detach,
        }
        self._watch(session.event_fileno(), self._drain)
        self._watch(session.target_fileno(), self._target_ended)
        self._due: float | None = time.monotonic()
        self._watch(session.news_fileno(), self._keep_up)
        monitor = session.monitor_fileno()
        if monitor is not None:
            self._watch(monitor, self._drain_monitor)
        self._signalled, self._signal_end = socket.socketpair()
        self._signalled.settimeout(0)
        self._signal_end.settimeout(0)
        self._watch(self._signalled.fileno(), self._on_signal)
        self._wakeup_before = signal.set_wakeup_fd(
            self._signal_end.fileno(), warn_on_full_buffer=False
        )
        self._handlers_before = {number: signal.signal(number, _note) for number in _SIGNALS}
        try:
            self.lockdown = lock_down(session) if sandbox else stay_open()
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._control.close()
        self._selector.close()
        self._signalled.close()
        self._signal_end.close()

    def run(self) -> Ending:
        """Serve until detached, signalled, or the target ended.

        Woken by the fault loop's eventfd, the follower's, the monitor's, the
        control socket, the pidfd and the signals' wakeup fd; by the clock only
        while something is going on.
        """
        self._drain()  # an empty drain arms the eventfd
        while True:
            wait_s = None if self._due is None else max(0.0, self._due - time.monotonic())
            for key, mask in self._selector.select(wait_s):
                key.data(mask)
                if self._ending is not None:
                    self._drain()
                    return self._ending
            if self._due is not None and time.monotonic() >= self._due:
                self._keep_up()

    def _keep_up(self) -> None:
        upkeep = self._session.keep_up()
        for notice in upkeep.notices:
            self._tell(notice)
        self._due = None if upkeep.due_s is None else time.monotonic() + upkeep.due_s

    def _look_within(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self._due = at if self._due is None else min(self._due, at)

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, lambda _: act())

    def _drain(self) -> None:
        while events := self._session.drain_events():
            self._look_within(_TIDY_AFTER_S)
            for event in events:
                self._tell(event)
                if self._fail_on_violation and event.verdict is Verdict.VIOLATION:
                    self._ending = self._ending or Ending.VIOLATION

    def _drain_monitor(self) -> None:
        for event in self._session.drain_monitor():
            self._tell(event)
        self._look_within(0.0)

    def _tell(self, event: Event) -> None:
        self._on_event(event)
        self._control.publish(event)

    def _target_ended(self) -> None:
        self._ending = Ending.TARGET_GONE

    def _on_signal(self) -> None:
        numbers = set(self._signalled.recv(64))
        if numbers & set(_SIGNALS):
            self._ending = Ending.SIGNAL

    def _handle(self, message: dict[str, Any]) -> object:
        verb = self._verbs.get(message["verb"])
        if verb is None:
            raise ControlError(
                f"there is no verb {message['verb']!r}", hint=f"there are {', '.join(self._verbs)}"
            )
        return verb(message)

    def _inflate(self, message: dict[str, Any]) -> ChangeReport:
        agreed = message.get("guest_agreed") is True
        node = node_of(message)
        if node is not None and message.get("gpa") is None:
            size_bytes, granule = part_of(message)
            report = self._session.inflate_node(
                node, granule, size_bytes=size_bytes, guest_agreed=agreed
            )
        else:
            report = self._session.inflate(*self._range_of(message), guest_agreed=agreed)
        self._look_within(0.0)
        return report

    def _deflate(self, message: dict[str, Any]) -> ChangeReport:
        node = node_of(message)
        if node is not None and message.get("gpa") is None:
            size_bytes, granule = part_of(message)
            return self._session.deflate_node(node, granule, size_bytes)
        return self._session.deflate(*self._range_of(message))

    def _range_of(self, message: dict[str, Any]) -> tuple[GpaRange, Granule]:
        """Read the range that a request is about, which lies in the node that it names."""
        span, granule = range_of(message)
        node = node_of(message)
        if node is not None:
            self._session.refuse_outside_node(node, span)
        return span, granule

    def _release(self, message: dict[str, Any]) -> Released:
        tid = message.get("tid")
        if tid is not None and (type(tid) is not int or tid <= 0):
            raise UsageError("that is no thread", why="a thread id is a number above 0")
        return Released(released=self._session.release(tid))

    def _status(self, _: dict[str, Any]) -> Status:
        state = replace(self._session.status(), sandbox=self.lockdown.report())
        self._drain_monitor()  # of RAM that was plugged in nobody tells unless it is looked for
        return state

    def _set(self, message: dict[str, Any]) -> BalloonProgress:
        size = message.get("size")
        if type(size) is not int:
            raise UsageError("that is no size", why="a size is a whole number of bytes")
        return self._session.ask_balloon(size)

    def _verify(self, _: dict[str, Any]) -> Verification:
        return self._session.verify()

    def _map(self, message: dict[str, Any]) -> WireMap:
        recent_s = message.get("recent_s")
        if not isinstance(recent_s, int | float) or not 0 <= recent_s <= _MOST_RECENT_S:
            raise UsageError("that is no time", why="recent_s is a number of seconds, 0 or more")
        return self._session.block_map(recent_s, between=self._catch_up).to_wire()

    def _catch_up(self) -> None:
        """See to what has come up, in the middle of something long."""
        self._drain()
        self._keep_up()

    def _detach(self, _: dict[str, Any]) -> Detaching:
        self._ending = Ending.DETACHED
        return Detaching(manager=os.getpid())


def range_of(message: dict[str, Any]) -> tuple[GpaRange, Granule]:
    """Read the range that a request is about; raise UsageError."""
    gpa, size, granule = (message.get(key) for key in ("gpa", "size", "granule"))
    if type(gpa) is not int or type(size) is not int or gpa < 0 or size < 0:
        raise UsageError("that is no range", why="gpa and size are whole numbers of bytes")
    span, whole = GpaRange.of(gpa, size), _granule_of(granule)
    if gpa % whole.size_bytes:
        raise RangeError(
            f"gpa {gpa:#x} is not aligned to the granule",
            why=f"granules are {format_size(whole.size_bytes)}; {gpa} is {gpa:#x}",
            hint=f"hexadecimal begins with 0x; the next granule is at "
            f"{round_up(gpa, whole.size_bytes):#x}",
        )
    return span, whole


def node_of(message: dict[str, Any]) -> int | None:
    """Read which NUMA node of the guest a request is about; raise UsageError."""
    node = message.get("node")
    if node is not None and (type(node) is not int or node < 0):
        raise UsageError("that is no node", why="a node is a number, 0 or more")
    return node


def part_of(message: dict[str, Any]) -> tuple[int | None, Granule]:
    """Read how much of a node a request is about, None for all; raise UsageError."""
    size = message.get("size")
    if size is not None and (type(size) is not int or size < 0):
        raise UsageError("that is no size", why="a size is a whole number of bytes")
    return size, _granule_of(message.get("granule"))


def _granule_of(granule: object) -> Granule:
    try:
        return Granule(granule)
    except ValueError as error:
        raise UsageError(
            f"{granule!r} is no granule", why="granules are 4k, thp and huge2m"
        ) from error


def _note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the wakeup fd tells the loop."""
