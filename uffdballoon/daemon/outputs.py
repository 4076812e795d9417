# SPDX-License-Identifier: GPL-2.0-or-later
"""Where events go beside those who follow: never waited for, and never a reason to end.

A disk is full, a reader is slow, stopped or gone: events wait, bounded, and those that there
is no room for are counted. Whoever reads on is told where some are missing.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.model.records.events import Event

_MOST_WAITING_BYTES = 1 << 20
_TRY_AGAIN_S = 0.1
_LAST_S = 1.0
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF})


class Output(Protocol):
    """What a manager tells events to."""

    @property
    def unwritten(self) -> int:
        """How many events it has dropped so far."""

    def write(self, event: Event) -> None:
        """Take an event; raise nothing, and wait for nobody."""

    def flush(self) -> float | None:
        """Go on with what waits; return seconds until it can be tried again, None: nothing does."""

    def close(self) -> None:
        """Tell what is still to be told, and let go; called once."""


class Sink(Protocol):
    """Takes bytes without waiting."""

    @property
    def name(self) -> str:
        """How a person calls it."""

    def write(self, data: bytes) -> int:
        """Take some of it; return how many bytes, 0 when there is no room now.

        Raises OSError.
        """

    def makes_room(self, size_bytes: int) -> bool:
        """Do a part of what must be done before it takes so much; False when that is nothing."""

    def close(self) -> None:
        """Write nothing more."""


class EventWriter:
    """Encodes events for a sink; an Output. ``tell`` is told of trouble, once until it is over."""

    def __init__(
        self, sink: Sink, encode: Callable[[Event], bytes], tell: Callable[[str], None]
    ) -> None:
        self._sink = sink
        self._encode = encode
        self._tell = tell
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._gone = False
        self._trouble = False
        self._missing = 0  # since the last that was taken
        self.unwritten = 0

    def write(self, event: Event) -> None:
        """Write it, or have it wait behind others; drop it where too many do."""
        if self._gone:
            self.unwritten += 1
            return
        data = self._encode(event)
        if self._waiting_bytes + len(data) > _MOST_WAITING_BYTES:
            self.unwritten += 1
            self._missing += 1
            self._say_trouble("its reader is slow")
            return
        was_idle = not self._waiting
        self._add(data)
        if was_idle:
            self.flush()

    def flush(self) -> float | None:
        """Write what waits, as far as there is room."""
        if self._gone:
            return None
        try:
            while self._waiting:
                if self._sink.makes_room(len(self._waiting[0])):
                    return 0.0
                taken = self._sink.write(self._waiting[0])
                if not taken:
                    return _TRY_AGAIN_S
                self._took(taken)
        except OSError as error:
            return self._failed(error)
        if self._trouble:
            self._trouble = False
            self._tell(f"events are written to {self._sink.name} again; {self.unwritten} were not")
        return None

    def close(self) -> None:
        """Write what waits, and wait a moment for whoever reads it."""
        deadline = time.monotonic() + _LAST_S
        while (again_s := self.flush()) is not None and time.monotonic() < deadline:
            time.sleep(again_s)
        self._sink.close()

    def _add(self, data: bytes) -> None:
        if self._missing and not self._gone:
            why = f"{self._missing} event(s) could not be written"
            gap = self._encode(notice(EventKind.MISSED, why, count=self._missing))
            self._missing = 0
            self._append(gap)
        self._append(data)

    def _append(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)

    def _took(self, taken: int) -> None:
        first = self._waiting.popleft()
        self._waiting_bytes -= taken
        if taken < len(first):  # a line that is begun is ended, whatever is dropped behind it
            self._waiting.appendleft(first[taken:])

    def _failed(self, error: OSError) -> float | None:
        why = error.strerror or str(error)
        if error.errno not in _GONE:
            self._say_trouble(why)
            return _TRY_AGAIN_S
        self._say_trouble(f"{why}; for good")
        self._gone = True
        self.unwritten += len(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        return None

    def _say_trouble(self, why: str) -> None:
        if not self._trouble:
            self._trouble = True
            self._tell(
                f"events cannot be written to {self._sink.name}: {why}. Enforcement goes on, and "
                "`events` has the last ones"
            )
