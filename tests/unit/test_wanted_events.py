# SPDX-License-Identifier: GPL-2.0-or-later
"""Which events `events` shows of those past, and of those that come."""

from __future__ import annotations

import pytest

from uffdballoon.cli.events import Wanted
from uffdballoon.model.records.events import Event, EventKind, Notice

_ALL = Wanted(0, frozenset())


def _notices(*times: int, kind: EventKind = EventKind.INFLATE) -> list[Notice]:
    return [Notice(time_ns=time, kind=kind) for time in times]


def _shown(wanted: Wanted, last: int | None, past: list[Notice], *news: Notice) -> list[int]:
    told: list[list[Event]] = [[*past]]
    told += [[each] for each in news]
    return [event.time_ns for event in wanted.of(iter(told), last)]


@pytest.mark.parametrize(
    ("last", "shown"), [(None, [1, 2, 3]), (2, [2, 3]), (0, []), (3, [1, 2, 3]), (9, [1, 2, 3])]
)
def test_the_last_ones_are_of_the_past_and_what_comes_is_shown(
    last: int | None, shown: list[int]
) -> None:
    assert _shown(_ALL, last, _notices(1, 2, 3), *_notices(4, 5)) == [*shown, 4, 5]


def test_the_past_is_shown_from_a_moment_on() -> None:
    since = Wanted(2, frozenset())
    assert _shown(since, None, _notices(1, 2, 3)) == [2, 3]
    assert _shown(since, None, _notices(1), *_notices(1, 2)) == [2]


def test_kinds_are_kept_in_the_past_and_in_what_comes_and_counted_after() -> None:
    resets = Wanted(0, frozenset({EventKind.RESET, EventKind.STOPPED}))
    past = [*_notices(1, 2, kind=EventKind.RESET), *_notices(3), *_notices(4)]
    news = [*_notices(5), *_notices(6, kind=EventKind.STOPPED)]
    assert _shown(resets, 1, past, *news) == [2, 6]


def test_of_a_manager_that_ended_at_once_nothing_is_shown() -> None:
    assert list(_ALL.of(iter([]), 3)) == []
