# SPDX-License-Identifier: GPL-2.0-or-later
"""What a session is made of, to whoever has a loop: fds to watch, and work by the clock.

A source that is ready is acted on, and its part is ticked right after. A part is ticked again
when it said so, or when another part asked for it. It is opened and closed by who made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.model.records.events import Event


@dataclass(frozen=True, slots=True)
class Source:
    """An fd, and what to do in one turn when it can be read.

    ``on_ready`` returns whether there is more of it, which the next turn sees to.
    """

    name: str
    fd: int
    on_ready: Callable[[], bool]


class Tick(NamedTuple):
    """What came of a tick.

    ``events`` are to be told. The part is to be ticked again within ``due_s`` seconds, and all
    others within ``others_s``; None: not by the clock.
    """

    events: Sequence[Event] = ()
    due_s: float | None = None
    others_s: float | None = None


class Part(Protocol):
    """Something that a session is made of, and that needs to be seen to."""

    @property
    def name(self) -> str:
        """What its failures are told under."""

    def sources(self) -> Sequence[Source]:
        """Return what to watch for as long as the session lasts."""

    def tick(self) -> Tick:
        """Do what is due, which may be nothing, in a few milliseconds; raise named errors.

        After an error it is called again, and nothing that was to be told is lost.
        """
