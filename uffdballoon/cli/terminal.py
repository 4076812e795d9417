# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person at the terminal of an attach is told while it runs.

The first of each kind of event at once, and so is what changes the guest's life; the rest is
counted, and a line a second at most tells how much there was.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from typing import TYPE_CHECKING

from uffdballoon.cli.text.events import event_line
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.touch import Action

if TYPE_CHECKING:
    from uffdballoon.daemon.sinks import SocketSink, StreamSink
    from uffdballoon.model.records.events import Event

_SUMMARY_S = 1.0
_MOST_WAITING_BYTES = 64 << 10
_COUNTED = frozenset(
    {
        EventKind.ORDINARY,
        EventKind.GRANTED,
        EventKind.VIOLATION,
        EventKind.INFLATE,
        EventKind.DEFLATE,
        EventKind.BALLOON_CHANGE,
    }
)
"""Told at once the first time alone; of all others each."""
_HARD = frozenset({Action.FREEZE, Action.PAUSE, Action.POISON, Action.KILL})
"""Told at once, once a second."""


class Verbosity(enum.Enum):
    """How much is told."""

    QUIET = "quiet"
    USUAL = "usual"
    ALL = "all"


class Terminal:
    """Lines for a person; an Output (daemon.outputs). What the terminal does not take is gone."""

    def __init__(self, sink: StreamSink | SocketSink, verbosity: Verbosity) -> None:
        self._sink = sink
        self._verbosity = verbosity
        self._waiting = b""
        self._told_at: dict[tuple[EventKind, Action | None], float] = {}
        self._counted: Counter[tuple[EventKind, Action | None]] = Counter()
        self._summary_at = 0.0

    @property
    def unwritten(self) -> int:
        """None: a line for a person is no record."""
        return 0

    def write(self, event: Event) -> None:
        """Tell it, or count it."""
        if self._verbosity is Verbosity.QUIET:
            return
        what, now = (event.kind, event.action), time.monotonic()
        last = self._told_at.get(what)
        if self._verbosity is Verbosity.ALL or self._is_told_at_once(event, last, now):
            self._told_at[what] = now
            self.say(event_line(event))
            return
        if not self._counted:
            self._summary_at = max(self._summary_at, now)
        self._counted[what] += 1

    def flush(self) -> float | None:
        """Tell what was counted, when a second is over."""
        now = time.monotonic()
        if self._counted and now >= self._summary_at + _SUMMARY_S:
            self._summarise(now)
        self._push()
        if self._counted:
            return max(0.0, self._summary_at + _SUMMARY_S - now)
        return _SUMMARY_S if self._waiting else None

    def close(self) -> None:
        """Tell what was counted since the last summary."""
        if self._counted:
            self._summarise(time.monotonic())
        self._push()
        self._sink.close()

    def say(self, line: str) -> None:
        """Write a line; where nobody reads, it is gone."""
        data = f"uffdballoon: {line}\n".encode()
        if len(self._waiting) + len(data) > _MOST_WAITING_BYTES:
            return
        self._waiting += data
        self._push()

    def _is_told_at_once(self, event: Event, last: float | None, now: float) -> bool:
        if last is None:
            return True
        if event.kind in _COUNTED and event.action not in _HARD:
            return False
        return now - last >= _SUMMARY_S

    def _summarise(self, now: float) -> None:
        parts = []
        for (kind, action), count in sorted(
            self._counted.items(), key=lambda item: item[1], reverse=True
        ):
            by = f" ({action.value})" if action is not None else ""
            parts.append(f"{count} more {kind.value}{by}")
        self._counted.clear()
        self._summary_at = now
        self.say(", ".join(parts))

    def _push(self) -> None:
        try:
            while self._waiting and (taken := self._sink.write(self._waiting)):
                self._waiting = self._waiting[taken:]
        except OSError:
            self._waiting = b""
