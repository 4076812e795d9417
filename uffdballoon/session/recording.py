# SPDX-License-Identifier: GPL-2.0-or-later
"""The balloon as it is, run by run, for who reckons with it elsewhere or wants to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.job import Turn
from uffdballoon.model.recording import Recording
from uffdballoon.model.records.spans import BalloonRanges, Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.job import Job
    from uffdballoon.session.attachment import Attachment


def recording(attached: Attachment) -> Job[Recording]:
    """Return the balloon's runs as they are, a part in a step."""
    turn = Turn()
    runs = []
    for run in _ballooned_runs(attached):
        runs.append(run)
        if turn.is_over():
            yield 0.0
    return Recording(attached.layout.ram_bytes, tuple(runs))


def listing(attached: Attachment, most: int) -> Job[BalloonRanges]:
    """Return the first ``most`` ranges that are in the balloon, and a count of the rest.

    A part in a step; those of a balloon that moves meanwhile are of different moments.
    """
    turn = Turn()
    first: list[Span] = []
    more_ranges = more_bytes = 0
    for gfn, pages in _ballooned_runs(attached):
        if len(first) < most:
            first.append(Span(gpa=gfn * PAGE_BYTES, size=pages * PAGE_BYTES))
        else:
            more_ranges += 1
            more_bytes += pages * PAGE_BYTES
        if turn.is_over():
            yield 0.0
    return BalloonRanges(ranges=tuple(first), more_ranges=more_ranges, more_bytes=more_bytes)


def _ballooned_runs(attached: Attachment) -> Iterator[tuple[int, int]]:
    """Yield the balloon's runs as (gfn, pages)."""
    for segment in attached.layout.segments:
        for run in attached.enforcer.ledger.runs(segment.hva_range):
            gpa = segment.gpa + run.start - segment.hva
            yield gpa // PAGE_BYTES, run.size_bytes // PAGE_BYTES
