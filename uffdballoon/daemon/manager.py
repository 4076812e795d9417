# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of a running attach: events, verbs, signals and the target's end."""

from __future__ import annotations

import enum
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.daemon.control import ControlServer
from uffdballoon.errors import ControlError, UsageError
from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.granule import Granule

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from uffdballoon.session import Session

_LOOK_EVERY_S = 1.0
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
        on_event: Callable[[dict[str, Any]], None],
        fail_on_violation: bool = False,
    ) -> None:
        self._session = session
        self._on_event = on_event
        self._fail_on_violation = fail_on_violation
        self._ending: Ending | None = None
        self._selector = selectors.DefaultSelector()
        self._control = ControlServer(session.target.pid, self._selector, self._handle)
        self._verbs: dict[str, Callable[[dict[str, Any]], Any]] = {
            "status": lambda _: session.status(),
            "events": lambda _: list(self._control.recent),
            "inflate": self._inflate,
            "deflate": self._deflate,
            "release": self._release,
            "verify": self._verify,
            "detach": self._detach,
        }
        self._watch(session.event_fileno(), self._drain)
        self._watch(session.target_fileno(), self._target_ended)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._control.close()
        self._selector.close()
        self._signalled.close()
        self._signal_end.close()

    def run(self) -> Ending:
        """Serve until detached, signalled, or the target ended.

        Woken by the fault loop's eventfd, the monitor's, the control socket, the
        pidfd and the signals' wakeup fd, and once a second.
        """
        self._drain()  # an empty drain arms the eventfd
        next_look = time.monotonic()
        while True:
            for key, mask in self._selector.select(_LOOK_EVERY_S):
                key.data(mask)
                if self._ending is not None:
                    self._drain()
                    return self._ending
            if time.monotonic() >= next_look:
                self._session.keep_up()
                next_look = time.monotonic() + _LOOK_EVERY_S

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, lambda _: act())

    def _drain(self) -> None:
        while events := self._session.drain_events():
            for event in events:
                self._tell(event)
                if self._fail_on_violation and event["verdict"] == "violation":
                    self._ending = self._ending or Ending.VIOLATION

    def _drain_monitor(self) -> None:
        for event in self._session.drain_monitor():
            self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        self._on_event(event)
        self._control.publish(event)

    def _target_ended(self) -> None:
        self._ending = Ending.TARGET_GONE

    def _on_signal(self) -> None:
        numbers = set(self._signalled.recv(64))
        if numbers & set(_SIGNALS):
            self._ending = Ending.SIGNAL

    def _handle(self, message: dict[str, Any]) -> Any:  # noqa: ANN401 - the verb's own
        verb = self._verbs.get(message["verb"])
        if verb is None:
            raise ControlError(
                f"there is no verb {message['verb']!r}", hint=f"there are {', '.join(self._verbs)}"
            )
        return verb(message)

    def _inflate(self, message: dict[str, Any]) -> dict[str, Any]:
        span, granule = _range_of(message)
        report = self._session.inflate(
            span, granule, guest_agreed=message.get("guest_agreed") is True
        )
        return report.as_dict()

    def _deflate(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._session.deflate(*_range_of(message)).as_dict()

    def _release(self, message: dict[str, Any]) -> dict[str, int]:
        tid = message.get("tid")
        if tid is not None and (type(tid) is not int or tid <= 0):
            raise UsageError("that is no thread", why="a thread id is a number above 0")
        return {"released": self._session.release(tid)}

    def _verify(self, _: dict[str, Any]) -> list[dict[str, int]]:
        found = self._session.disagreements()
        return [{"gpa": span.start, "size": span.size_bytes} for span in found]

    def _detach(self, _: dict[str, Any]) -> dict[str, int]:
        self._ending = Ending.DETACHED
        return {"manager": os.getpid()}


def _range_of(message: dict[str, Any]) -> tuple[GpaRange, Granule]:
    gpa, size, granule = (message.get(key) for key in ("gpa", "size", "granule"))
    if type(gpa) is not int or type(size) is not int or gpa < 0 or size < 0:
        raise UsageError("that is no range", why="gpa and size are whole numbers of bytes")
    try:
        return GpaRange.of(gpa, size), Granule(granule)
    except ValueError as error:
        raise UsageError(
            f"{granule!r} is no granule", why="granules are 4k, thp and huge2m"
        ) from error


def _note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the wakeup fd tells the loop."""
