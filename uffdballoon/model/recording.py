# SPDX-License-Identifier: GPL-2.0-or-later
"""A balloon that was recorded, and the balloon of a larger guest laid out of it.

How fragmented memory is depends on what a guest does, not on how much of it
there is: so the larger guest is taken to be the recorded one, over and over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.fragments import MAX_ORDER, Fragments, fragments_of
from uffdballoon.model.records.statistics import RecordedBalloon

FORMAT = "uffdballoon balloon 1"
_ALIGNED_PAGES = 1 << MAX_ORDER
_MAX_BYTES = 1 << 62  # more than any address space: numbers beyond are nobody's memory


@dataclass(frozen=True, slots=True)
class Recording:
    """``runs`` are (first page, pages), sorted and apart; of a guest of ``ram_bytes``."""

    ram_bytes: int
    runs: tuple[tuple[int, int], ...]

    def record(self) -> RecordedBalloon:
        """Return it in the shape in which it is kept."""
        return RecordedBalloon(format=FORMAT, ram_bytes=self.ram_bytes, runs=self.runs)

    @classmethod
    def parse(cls, value: object) -> Recording:
        """Read the JSON of record(); raise UsageError for anything else."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise _bad(f"its format is not {FORMAT!r}")
        ram_bytes, rows = value.get("ram_bytes"), value.get("runs")
        if type(ram_bytes) is not int or not isinstance(rows, list):
            raise _bad("it has no ram_bytes or no runs")
        if not PAGE_BYTES <= ram_bytes <= _MAX_BYTES:
            raise _bad("its ram_bytes are no guest's")
        runs = []
        at = 0
        for row in rows:
            if not (isinstance(row, list) and [type(n) for n in row] == [int, int]):
                raise _bad(f"{str(row)[:40]} is no run")
            start, pages = row
            if start < at or pages < 1 or max(start, pages) > _MAX_BYTES // PAGE_BYTES:
                raise _bad(f"{str(row)[:40]} is empty, too much, or not behind the one before it")
            at = start + pages
            runs.append((start, pages))
        return cls(ram_bytes, tuple(runs))

    def tiled(self, ram_bytes: int) -> Fragments:
        """Measure the balloon of a guest of ``ram_bytes`` that is this one, over and over.

        Rounded to a whole number of it, at least one. Exact: what a tile more adds
        is the same for each, as long as no run fills a tile.
        """
        last = sum(self.runs[-1]) if self.runs else 0
        tile = max(self.ram_bytes // PAGE_BYTES, last)
        tile += -tile % _ALIGNED_PAGES
        copies = max(1, round(ram_bytes / (tile * PAGE_BYTES)))
        one = fragments_of(self._repeated(1, tile))
        if copies == 1 or not self.runs:
            return one
        if self.runs == ((0, tile),):
            return fragments_of([(0, tile * copies)])
        two = fragments_of(self._repeated(2, tile))
        more = copies - 1
        return Fragments(
            pages=one.pages + more * (two.pages - one.pages),
            count=one.count + more * (two.count - one.count),
            runs=_extended(one.runs, two.runs, more),
            orders=_extended(one.orders, two.orders, more),
            span_pages=one.span_pages + more * tile,
        )

    def _repeated(self, copies: int, tile: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for copy in range(copies):
            for start, pages in self.runs:
                first = copy * tile + start
                if runs and sum(runs[-1]) == first:
                    runs[-1] = (runs[-1][0], runs[-1][1] + pages)
                else:
                    runs.append((first, pages))
        return runs


def _extended(one: dict[int, int], two: dict[int, int], more: int) -> dict[int, int]:
    counts = Counter(one)
    for key in set(one) | set(two):
        counts[key] += more * (two.get(key, 0) - one.get(key, 0))
    return {key: count for key, count in counts.items() if count}


def _bad(why: str) -> UsageError:
    return UsageError(
        "that is no recording of a balloon",
        why=why,
        hint="make one with: uffdballoon stats PID --record FILE",
    )
