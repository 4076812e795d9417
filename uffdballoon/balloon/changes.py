# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages the guest gave up and took back, each time until the balloon was quiet again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.model.job import Turn
from uffdballoon.model.records.statistics import RecordedChange, RecordedTrace

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from uffdballoon.core.ledger import Ledger
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.job import Job

_MOST_RUNS = 1 << 18  # in all that is kept, 4 MiB of memory
_TOLD_WORDS = 8192


class _Change(NamedTuple):
    """Of each run its first page and its pages, one number after the other."""

    time_ns: int
    inflated: array[int]
    deflated: array[int]

    @property
    def nr_runs(self) -> int:
        return (len(self.inflated) + len(self.deflated)) // 2


class Changes:
    """The latest changes of the balloon; ``parts`` are (range in a RAM block, its first gfn)."""

    def __init__(self, parts: Sequence[tuple[HvaRange, int]], most_runs: int = _MOST_RUNS) -> None:
        self._parts = parts
        self._most_runs = most_runs
        self._kept: deque[_Change] = deque()
        self._nr_runs = 0
        self._left_out = 0

    def noting(self, time_ns: int, now: Ledger, before: Ledger) -> Job[None]:
        """Keep what changed since ``before``; older ones go, as long as there is too much.

        One that is too much by itself goes with them: a part of it would be told as the whole.
        """
        most = self._most_runs + 1  # which is too much
        inflated = yield from now.listing_runs(self._parts, before, most)
        deflated = yield from before.listing_runs(self._parts, now, most)
        change = _Change(time_ns, inflated, deflated)
        if not change.nr_runs:
            return
        self._kept.append(change)
        self._nr_runs += change.nr_runs
        while self._nr_runs > self._most_runs:
            self._nr_runs -= self._kept.popleft().nr_runs
            self._left_out += 1

    def telling(self, ram_bytes: int) -> Job[RecordedTrace]:
        """Return those that are kept, the oldest first."""
        turn = Turn()
        kept, left_out = tuple(self._kept), self._left_out
        changes = []
        for change in kept:
            inflated = yield from _pairs(change.inflated, turn)
            deflated = yield from _pairs(change.deflated, turn)
            told = RecordedChange(time_ns=change.time_ns, inflated=inflated, deflated=deflated)
            changes.append(told)
        return RecordedTrace(ram_bytes=ram_bytes, left_out=left_out, changes=tuple(changes))


def _pairs(words: array[int], turn: Turn) -> Job[tuple[tuple[int, int], ...]]:
    pairs: list[tuple[int, int]] = []
    for at in range(0, len(words), _TOLD_WORDS):
        part = words[at : at + _TOLD_WORDS]
        pairs += zip(part[::2], part[1::2], strict=True)
        if turn.is_over():
            yield 0.0
    return tuple(pairs)
