# SPDX-License-Identifier: GPL-2.0-or-later
"""What C counts of a ledger is what the pure reference counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.core.ledger import Ledger
from uffdballoon.model.addresses import PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.fragments import Fragments, fragments_of
from uffdballoon.model.ram import Backing, RamBlock

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


def reference(pages: set[int]) -> Fragments:
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and sum(found[-1]) == FIRST_GFN + page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((FIRST_GFN + page, 1))
    return fragments_of(found)


@pytest.fixture(autouse=True, scope="module", params=[16, PAGES], ids=["in steps", "at once"])
def measured_pages(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("uffdballoon.core.ledger._MEASURED_BYTES", request.param * PAGE_BYTES)
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
