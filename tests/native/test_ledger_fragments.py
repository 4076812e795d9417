# SPDX-License-Identifier: GPL-2.0-or-later
"""What C counts of a ledger is what the pure reference counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.balloon.changes import Changes
from uffdballoon.core.ledger import Ledger
from uffdballoon.model.addresses import PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.fragments import Fragments, fragments_of
from uffdballoon.model.job import run_job
from uffdballoon.model.ram import Backing, RamBlock
from uffdballoon.model.records.statistics import RecordedChange, RecordedTrace

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = 4096
START = Hva(1 << 30)
FIRST_GFN = 0x100000
BLOCK = RamBlock(
    idstr="ram",
    hva=START,
    size_bytes=PAGES * PAGE_BYTES,
    page_bytes=PAGE_BYTES,
    backing=Backing.ANON,
    shared=False,
)
runs = st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, 1500)), max_size=12)


def ledger_of(parts: list[tuple[int, int]]) -> tuple[Ledger, set[int]]:
    ledger, pages = Ledger([BLOCK]), set()
    for first, count in parts:
        last = min(first + count, PAGES)
        ledger.set(HvaRange.of(Hva(START + first * PAGE_BYTES), (last - first) * PAGE_BYTES))
        pages |= set(range(first, last))
    return ledger, pages


def runs_of(pages: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and sum(found[-1]) == FIRST_GFN + page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((FIRST_GFN + page, 1))
    return found


def reference(pages: set[int]) -> Fragments:
    return fragments_of(runs_of(pages))


@pytest.fixture(autouse=True, scope="module", params=[16, PAGES], ids=["in steps", "at once"])
def measured_pages(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("uffdballoon.core.ledger._MEASURED_BYTES", request.param * PAGE_BYTES)
        patched.setattr("uffdballoon.core.ledger._LISTED_RUNS", 3)
        yield


@given(runs, runs)
def test_runs_and_what_is_new_among_them_are_counted(
    given_up: list[tuple[int, int]], before: list[tuple[int, int]]
) -> None:
    ledger, pages = ledger_of(given_up)
    older, old_pages = ledger_of(before)
    parts = [(BLOCK.hva_range, FIRST_GFN)]
    assert ledger.fragments(parts) == reference(pages)
    assert ledger.fragments(parts, older) == reference(pages - old_pages)
    ledger.copy_to(older)
    assert older.ballooned_bytes == ledger.ballooned_bytes
    assert ledger.fragments(parts, older).pages == 0
    assert older.fragments(parts) == reference(pages)


def changes_of(changes: Changes) -> RecordedTrace:
    return run_job(changes.telling(PAGES * PAGE_BYTES))


@given(runs, runs, st.integers(1, 40))
def test_runs_that_are_new_are_listed_and_no_more_than_asked_for(
    given_up: list[tuple[int, int]], before: list[tuple[int, int]], most: int
) -> None:
    ledger, pages = ledger_of(given_up)
    older, old_pages = ledger_of(before)
    parts = [(BLOCK.hva_range, FIRST_GFN)]
    words = run_job(ledger.listing_runs(parts, older, most))
    listed = list(zip(words[::2], words[1::2], strict=True))
    assert listed == runs_of(pages - old_pages)[:most]


@given(runs, runs)
def test_what_came_and_what_went_is_kept_as_a_change(
    before: list[tuple[int, int]], now: list[tuple[int, int]]
) -> None:
    older, old_pages = ledger_of(before)
    newer, new_pages = ledger_of(now)
    changes = Changes([(BLOCK.hva_range, FIRST_GFN)])
    run_job(changes.noting(7, newer, older))
    inflated, deflated = runs_of(new_pages - old_pages), runs_of(old_pages - new_pages)
    expected = [RecordedChange(time_ns=7, inflated=tuple(inflated), deflated=tuple(deflated))]
    assert list(changes_of(changes).changes) == (expected if inflated or deflated else [])


def test_old_changes_go_where_there_is_too_much_and_none_is_kept_in_part() -> None:
    changes = Changes([(BLOCK.hva_range, FIRST_GFN)], most_runs=4)
    states = [ledger_of([(2 * i, 1) for i in range(count)])[0] for count in (0, 2, 4, 6)]
    for number in range(3):
        run_job(changes.noting(number, states[number + 1], states[number]))
    told = changes_of(changes)
    assert (told.left_out, [change.time_ns for change in told.changes]) == (1, [1, 2])
    run_job(changes.noting(3, states[0], states[3]))  # six runs, which is too much
    told = changes_of(changes)
    assert (told.left_out, told.changes) == (4, ())
