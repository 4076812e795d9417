# SPDX-License-Identifier: GPL-2.0-or-later
"""What only the kernel can tell of the balloon: what is free, what khugepaged would fill, mappings.

To ask costs a walk over the page tables of all that is ballooned. Where that is little, who asks
is told anew. Where it is much, the walk goes on in the background, a few milliseconds at a time,
and who asks is told what the last whole one found, and how old that is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.balloon.mappings import cut_of, huge_spans
from uffdballoon.core.reclaim import ReclaimMeasure
from uffdballoon.errors import TargetGoneError
from uffdballoon.host.procfs import MappingCounts, counting_mappings
from uffdballoon.host.thp import read_thp_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.core.ledger import Ledger
    from uffdballoon.core.reclaim import ReclaimPasses
    from uffdballoon.model.job import Job
    from uffdballoon.model.ram import RamBlock

_LITTLE_BLOCKS = 512
"""Blocks of 2 MiB with ballooned pages that are surveyed whenever anybody asks."""
_LITTLE_WINDOWS = 1024
_COST_SHARE = 10
"""A survey in the background rests for so many times what a step of it took."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a survey found; ``ended_s`` is CLOCK_MONOTONIC, None: there was none yet."""

    measured: Mapping[RamBlock, ReclaimMeasure]
    mappings: int
    cut_huge_mappings: int
    ended_s: float | None

    @property
    def age_s(self) -> float | None:
        """Seconds since it was whole; None where there was none yet."""
        return None if self.ended_s is None else time.monotonic() - self.ended_s

    @property
    def total(self) -> ReclaimMeasure:
        """What all RAM blocks come to."""
        return ReclaimMeasure.total(self.measured.values())


class Survey:
    """The page tables and mappings of one target; of one that has ended, nothing."""

    def __init__(self, pid: int, ledger: Ledger, loop: FaultLoop, passes: ReclaimPasses) -> None:
        self._pid = pid
        self._ledger = ledger
        self._loop = loop
        self._passes = passes
        self._huge = huge_spans(ledger.blocks)
        self._walk: Job[Surveyed] | None = None
        self._begun_at = self._moves()
        self._next_s = 0.0
        # Of an empty balloon all is known; of one that was taken over, nothing.
        self._wanted = ledger.ballooned_bytes > 0
        known_s = None if self._wanted else time.monotonic()
        self._last = Surveyed(dict.fromkeys(ledger.blocks, ReclaimMeasure()), 0, 0, known_s)

    def renewing(self) -> Job[Surveyed]:
        """Survey all of it where it is little; or return the last one, and have another begun."""
        if self._is_little():
            self._last = yield from self._walking()
        else:
            self._wanted = True
        return self._last

    def work(self) -> float | None:
        """Go on with a survey that somebody asked for, or that changes ask for.

        Returns seconds until it is to be called again; None: when something happens.
        """
        if self._walk is None and not self._is_due():
            return None
        began_s = time.monotonic()
        if began_s < self._next_s:
            return self._next_s - began_s
        if self._walk is None:
            self._wanted, self._begun_at = False, self._moves()
            self._walk = self._walking()
        try:
            next(self._walk)
        except StopIteration as end:
            self._last = end.value
            self._walk = None
        now_s = time.monotonic()
        self._next_s = now_s + (now_s - began_s) * _COST_SHARE
        return self._next_s - now_s

    def _is_due(self) -> bool:
        return (self._wanted or self._moves() != self._begun_at) and not self._is_little()

    def _is_little(self) -> bool:
        tallies = [self._ledger.tally(block) for block in self._ledger.blocks]
        blocks = sum(tally.broken + tally.whole for tally in tallies)
        return blocks <= _LITTLE_BLOCKS and self._loop.stats().windows <= _LITTLE_WINDOWS

    def _moves(self) -> tuple[int, ...]:
        """Return what is another value once anything has changed that a survey looks at."""
        stats, reclaim = self._loop.stats(), self._passes.stats()
        return (
            self._ledger.ballooned_bytes,
            stats.observed_inflated,
            stats.observed_deflated,
            reclaim.split_blocks,
        )

    def _walking(self) -> Job[Surveyed]:
        thp = read_thp_settings()
        measured = dict.fromkeys(self._ledger.blocks, ReclaimMeasure())
        counts = MappingCounts(0, 0)
        try:
            for block in self._ledger.blocks:
                measured[block] = yield from self._passes.measuring(thp, block.hva_range)
            counts = yield from counting_mappings(self._pid, self._huge)
        except TargetGoneError:
            measured = dict.fromkeys(self._ledger.blocks, ReclaimMeasure())
        cut = cut_of(counts.within, self._huge)
        return Surveyed(measured, counts.all, cut, time.monotonic())
