# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a session in a loop: each by its own sources and its own timer.

What fails is told by the loop and tried again, and is no other part's matter.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from uffdballoon.errors import TargetGoneError
from uffdballoon.model.part import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uffdballoon.daemon.loop import Loop, Timer
    from uffdballoon.model.part import Part
    from uffdballoon.model.records.events import Event


class Upkeep:
    """Ticks the parts, those that are due in one turn in the order in which they are given."""

    def __init__(self, loop: Loop, parts: Iterable[Part], tell: Callable[[Event], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._timers: list[Timer] = []
        for part in parts:
            self._add(part)
        self.rouse(0.0)

    def rouse(self, seconds: float) -> None:
        """Have all parts ticked in ``seconds`` at the latest."""
        for timer in self._timers:
            timer.within(seconds)

    def _add(self, part: Part) -> None:
        timer = self._loop.timer(part.name, lambda: self._tick(part, timer))
        self._timers.append(timer)
        for source in part.sources():
            on_ready = partial(self._serve, source, timer)
            self._loop.add(Source(source.name, source.fd, on_ready))

    def _serve(self, source: Source, timer: Timer) -> bool:
        more = source.on_ready()
        self._loop.fire(timer)
        return more

    def _tick(self, part: Part, timer: Timer) -> None:
        try:
            tick = part.tick()
        except TargetGoneError:
            return  # whoever waits for its end knows
        for event in tick.events:
            self._tell(event)
        if tick.due_s is not None:
            timer.within(tick.due_s)
        if tick.others_s is not None:
            for other in self._timers:
                if other is not timer:
                    other.within(tick.others_s)
