# SPDX-License-Identifier: GPL-2.0-or-later
"""A survey of a real ledger: when it is made anew, when it goes on behind, when it rests."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from uffdballoon.balloon.survey import Survey
from uffdballoon.core.ledger import Ledger
from uffdballoon.core.reclaim import ReclaimMeasure, ReclaimPasses
from uffdballoon.errors import TargetGoneError
from uffdballoon.host.procfs import counting_mappings, read_mappings
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.job import run_job
from uffdballoon.model.ram import Backing, RamBlock

if TYPE_CHECKING:
    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.host.thp import ThpSettings
    from uffdballoon.model.job import Job

_MUCH = 600
_BLOCK = RamBlock("ram", Hva(1 << 45), _MUCH * HUGE_BYTES, PAGE_BYTES, Backing.ANON, shared=False)
_PATIENCE_S = 20.0


class _Passes:
    """Measures what the ledger says, in two steps."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.walks = 0
        self.is_gone = False

    def stats(self) -> SimpleNamespace:
        return SimpleNamespace(split_blocks=0)

    def measuring(self, thp: ThpSettings | None, span: HvaRange) -> Job[ReclaimMeasure]:
        del thp, span
        self.walks += 1
        pages = self._ledger.ballooned_bytes // PAGE_BYTES
        yield 0.0
        if self.is_gone:
            raise TargetGoneError("it ended")
        return ReclaimMeasure(ballooned_pages=pages)


class _Surveyed:
    def __init__(self) -> None:
        self.ledger = Ledger([_BLOCK])
        self.passes = _Passes(self.ledger)
        counts = SimpleNamespace(windows=1, observed_inflated=0, observed_deflated=0)
        self._loop = cast("FaultLoop", SimpleNamespace(stats=lambda: counts))
        self.survey = self.anew()

    def anew(self) -> Survey:
        passes = cast("ReclaimPasses", self.passes)
        return Survey(os.getpid(), self.ledger, self._loop, passes)

    def take_much(self) -> None:
        """Take a page of each block, which is more than anybody is made to wait for."""
        for block in range(_MUCH):
            self.ledger.set(HvaRange.of(_BLOCK.hva + block * HUGE_BYTES, PAGE_BYTES))

    def work_to_the_end(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while (due_s := self.survey.work()) is not None:
            assert time.monotonic() < deadline
            time.sleep(due_s)


@pytest.fixture
def it() -> _Surveyed:
    return _Surveyed()


def test_little_is_surveyed_whenever_anybody_asks(it: _Surveyed) -> None:
    for pages in (1, 2):
        it.ledger.set(HvaRange.of(_BLOCK.hva, pages * PAGE_BYTES))
        found = run_job(it.survey.renewing())
        assert found.total.free_bytes == pages * PAGE_BYTES
        assert found.mappings > 0
    assert it.survey.work() is None


def test_who_asks_about_much_waits_for_nothing_and_is_told_how_old_it_is(it: _Surveyed) -> None:
    it.take_much()
    before = run_job(it.survey.renewing())
    assert (it.passes.walks, before.total.free_bytes) == (0, 0)
    assert before.age_s is not None
    it.work_to_the_end()
    after = run_job(it.survey.renewing())
    assert after.total.free_bytes == _MUCH * PAGE_BYTES
    assert after.age_s is not None
    assert after.age_s < before.age_s


def test_a_survey_of_much_goes_on_until_it_has_seen_the_last_change(it: _Surveyed) -> None:
    it.take_much()
    assert it.survey.work() is not None
    it.ledger.set(HvaRange.of(_BLOCK.hva, 2 * PAGE_BYTES))
    it.work_to_the_end()
    assert run_job(it.survey.renewing()).total.free_bytes == (_MUCH + 1) * PAGE_BYTES
    it.work_to_the_end()  # what was asked for just now
    walks = it.passes.walks
    assert it.survey.work() is None
    assert it.passes.walks == walks


def test_of_what_was_taken_over_nothing_is_known_before_the_first_survey(it: _Surveyed) -> None:
    it.take_much()
    it.survey = it.anew()
    assert run_job(it.survey.renewing()).age_s is None
    it.work_to_the_end()
    assert run_job(it.survey.renewing()).age_s is not None


def test_nothing_is_found_of_a_target_that_has_ended(it: _Surveyed) -> None:
    it.ledger.set(HvaRange.of(_BLOCK.hva, PAGE_BYTES))
    it.passes.is_gone = True
    assert run_job(it.survey.renewing()).total == ReclaimMeasure()


def test_mappings_are_counted_as_they_are_listed() -> None:
    mappings = read_mappings(os.getpid())
    span = mappings[len(mappings) // 2].span
    counts = run_job(counting_mappings(os.getpid(), [span, HvaRange.of(Hva(0), PAGE_BYTES)]))
    assert counts.within == 1
    assert counts.all == pytest.approx(len(mappings), abs=4)  # memory is allocated meanwhile
