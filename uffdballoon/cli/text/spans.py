# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of guest memory for a person, not more of them than one can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.records.spans import BalloonRanges, Span

_MOST = 8


def span_words(spans: Sequence[Span]) -> str:
    """Name the first of some ranges, and how many others there are."""
    words = ", ".join(str(GpaRange.of(span.gpa, span.size)) for span in spans[:_MOST])
    more = len(spans) - _MOST
    return f"{words} and {more} more" if more > 0 else words or "nothing"


def range_rows(told: BalloonRanges) -> list[tuple[str, str]]:
    """Return each range of the balloon with its size, and how many others there are."""
    rows = [(str(GpaRange.of(span.gpa, span.size)), format_size(span.size)) for span in told.ranges]
    if told.more_ranges:
        rows.append((f"and {told.more_ranges} more ranges", format_size(told.more_bytes)))
    return rows
