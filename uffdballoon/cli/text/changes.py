# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of the balloon as lines for a person: one that was made, and one under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.cli.text.spans import span_words
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.records.balloon import BalloonProgress
    from uffdballoon.model.records.changes import ChangeReport


def inflate_lines(report: ChangeReport) -> Iterator[str]:
    """Say what was taken, what of it held memory, and what was not taken."""
    yield _done("inflated", report)
    if report.done_bytes:
        resident = format_size(report.freed_bytes) if report.freed_bytes else "none"
        yield f"of that was resident, and is not any more: {resident}"
    if already := _unchanged_bytes(report):
        yield f"already in the balloon: {format_size(already)}"
    yield from left_out_lines(report)


def deflate_lines(report: ChangeReport) -> Iterator[str]:
    """Say what was given back, and what was not."""
    yield _done("deflated", report)
    if already := _unchanged_bytes(report):
        yield f"was not in the balloon: {format_size(already)}"
    yield from left_out_lines(report)


def left_out_lines(report: ChangeReport) -> Iterator[str]:
    """Say what was rounded away, where there is anything."""
    if report.left_out:
        left_bytes = sum(piece.size for piece in report.left_out)
        where = span_words(report.left_out)
        yield f"left out: {format_size(left_bytes)} at {where} (not a whole granule)"


def progress_line(progress: BalloonProgress) -> str:
    """Say how far the guest's driver is."""
    actual = progress.actual_bytes
    has = "nothing is known of" if actual is None else f"{format_size(actual)} left to"
    asked = format_size(progress.target_bytes)
    line = f"{progress.state.value}: {has} the guest, {asked} asked for"
    return f"{line}; {progress.why}" if progress.why else line


def _done(verb: str, report: ChangeReport) -> str:
    of = f"{format_size(report.done_bytes)} of {format_size(report.requested_bytes)}"
    return f"{verb} {of}: {span_words(report.ranges)}"


def _unchanged_bytes(report: ChangeReport) -> int:
    """Return the bytes of whole granules that were as they are now before."""
    left_out = sum(piece.size for piece in report.left_out)
    return report.requested_bytes - left_out - report.done_bytes
