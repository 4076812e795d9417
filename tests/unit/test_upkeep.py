# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a session in a loop: each by its own timer and sources."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from uffdballoon.daemon.loop import Loop
from uffdballoon.daemon.upkeep import Upkeep
from uffdballoon.errors import TargetGoneError
from uffdballoon.model.notice import notice
from uffdballoon.model.part import Source, Tick
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.records.events import Event

_LATER_S = 3600.0
_PATIENCE_S = 20.0
_NEWS = notice(EventKind.INFLATE)
_MORE = notice(EventKind.DEFLATE)


class _Part:
    """A part whose ticks are given, one after the other; then there is nothing to do."""

    def __init__(self, name: str, order: list[str], *ticks: Tick | Exception) -> None:
        self.name = name
        self.ticks = list(ticks)
        self.order = order
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.left = 1

    def sources(self) -> list[Source]:
        return [Source(f"{self.name}'s fd", self.fd, self._on_ready)]

    def tick(self) -> Tick:
        self.order.append(self.name)
        tick = self.ticks.pop(0) if self.ticks else Tick()
        if isinstance(tick, Exception):
            raise tick
        return tick

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def _on_ready(self) -> bool:
        if self.left == 1:
            os.eventfd_read(self.fd)
        self.left -= 1
        return self.left > 0


class _Served:
    """Parts in a loop; what they tell, and what fails."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.told: list[Event] = []
        self.order: list[str] = []
        self.loop = Loop(lambda name, error: self.failures.append(f"{name}: {error}"))
        self.parts: list[_Part] = []

    def close(self) -> None:
        self.loop.close()
        for part in self.parts:
            os.close(part.fd)

    def part(self, name: str, *ticks: Tick | Exception) -> _Part:
        self.parts.append(_Part(name, self.order, *ticks))
        return self.parts[-1]

    def begin(self) -> Upkeep:
        """Add the parts, and tick each once, as happens at first."""
        upkeep = Upkeep(self.loop, self.parts, self.told.append)
        self.loop.turn()
        return upkeep

    def until(self, order: list[str]) -> None:
        """Take turns until the parts were ticked so; another order is an error."""
        deadline = time.monotonic() + _PATIENCE_S
        while len(self.order) < len(order):
            assert time.monotonic() < deadline
            self.loop.turn()
        assert self.order == order


@pytest.fixture
def served() -> Iterator[_Served]:
    served = _Served()
    yield served
    served.close()


def test_all_parts_are_ticked_at_first_in_their_order(served: _Served) -> None:
    served.part("a", Tick([_NEWS]))
    served.part("b", Tick([_MORE]))
    served.begin()
    assert served.order == ["a", "b"]
    assert served.told == [_NEWS, _MORE]


def test_a_part_that_fails_is_told_and_keeps_no_other_from_being_ticked(
    served: _Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uffdballoon.daemon.loop._LEFT_ALONE_S", 0.01)
    served.part("a", OSError("no"), OSError("no"), Tick([_MORE]))
    served.part("b", Tick([_NEWS]))
    served.begin()
    assert served.told == [_NEWS]
    served.until(["a", "b", "a", "a"])
    assert served.failures == ["a: no", "a: no"]
    assert served.told == [_NEWS, _MORE]


def test_a_part_is_ticked_again_when_it_said_so_and_no_other_is(served: _Served) -> None:
    served.part("a", Tick(due_s=0.001), Tick(due_s=0.001), Tick())
    served.part("b", Tick(due_s=_LATER_S))
    served.begin()
    served.until(["a", "b", "a", "a"])


def test_a_source_that_is_ready_has_its_part_ticked_and_no_other(served: _Served) -> None:
    first = served.part("a", Tick(due_s=_LATER_S), Tick([_NEWS]))
    served.part("b")
    served.begin()
    first.ring()
    served.until(["a", "b", "a"])
    assert served.told == [_NEWS]


def test_a_source_of_which_there_is_more_is_acted_on_in_the_next_turn(served: _Served) -> None:
    first = served.part("a")
    served.begin()
    first.left = 3
    first.ring()
    served.until(["a"] * 4)


def test_a_part_has_all_others_ticked_when_it_says_so(served: _Served) -> None:
    served.part("a")
    rings = served.part("b", Tick(), Tick(others_s=0.0))
    served.part("c", Tick(due_s=_LATER_S))
    served.begin()
    rings.ring()
    served.until(["a", "b", "c", "b", "a", "c"])


def test_a_tick_that_fails_leaves_its_source_watched(
    served: _Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uffdballoon.daemon.loop._LEFT_ALONE_S", _LATER_S)
    part = served.part("a", Tick(), OSError("no"), Tick([_NEWS]))
    served.begin()
    for _ in range(2):
        part.left = 1
        part.ring()
        served.loop.turn()
    assert served.failures == ["a: no"]
    assert served.told == [_NEWS]


def test_a_target_that_has_ended_is_no_failure_and_nothing_is_tried_again(served: _Served) -> None:
    served.part("a", TargetGoneError("gone", pid=1))
    served.part("b", Tick([_NEWS]))
    upkeep = served.begin()
    assert served.failures == []
    assert served.told == [_NEWS]
    upkeep.rouse(0.0)
    served.until(["a", "b", "a", "b"])
