# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of the balloon as lines for a person: one that was made, and one under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.cli.text.spans import span_words
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from uffdballoon.model.records.balloon import BalloonProgress
    from uffdballoon.model.records.changes import ChangeReport, InflatePreview
    from uffdballoon.model.records.spans import Span


def inflate_lines(report: ChangeReport) -> Iterator[str]:
    """Say what was taken, what of it held memory, and what was not taken."""
    yield _done("inflated", report)
    if report.done_bytes:
        resident = format_size(report.freed_bytes) if report.freed_bytes else "none"
        yield f"of that was resident, and is not any more: {resident}"
    if already := _unchanged_bytes(report):
        yield f"already in the balloon: {format_size(already)}"
    yield from _left_out(report.left_out)


def preview_lines(preview: InflatePreview) -> Iterator[str]:
    """Say what an inflate would take."""
    of = f"{format_size(preview.would_do_bytes)} of {format_size(preview.requested_bytes)}"
    yield f"would inflate {of}: {span_words(preview.ranges)}"
    yield f"resident now: {format_size(preview.resident_bytes)}"
    yield f"would break {max(0, preview.would_break_blocks)} more block(s) of 2 MiB"
    left_out = sum(piece.size for piece in preview.left_out)
    if already := preview.requested_bytes - left_out - preview.would_do_bytes:
        yield f"already in the balloon: {format_size(already)}"
    yield from _left_out(preview.left_out)
    yield "nothing was changed"


def deflate_lines(report: ChangeReport) -> Iterator[str]:
    """Say what was given back, and what was not."""
    yield _done("deflated", report)
    if already := _unchanged_bytes(report):
        yield f"was not in the balloon: {format_size(already)}"
    yield from _left_out(report.left_out)


def progress_line(progress: BalloonProgress) -> str:
    """Say how far the guest's driver is."""
    actual = progress.actual_bytes
    has = "nothing is known of" if actual is None else f"{format_size(actual)} left to"
    asked = format_size(progress.target_bytes)
    line = f"{progress.state.value}: {has} the guest, {asked} asked for"
    if len(progress.node_bytes) > 1:
        line += f" ({_of_nodes(progress.node_bytes)})"
    return f"{line}; {progress.why}" if progress.why else line


def _of_nodes(node_bytes: Mapping[int, int]) -> str:
    """Say of which nodes of the guest it came, or to which it went."""
    return ", ".join(
        f"{format_size(abs(size))} {'to' if size < 0 else 'of'} node {node}"
        for node, size in sorted(node_bytes.items())
    )


def _done(verb: str, report: ChangeReport) -> str:
    of = f"{format_size(report.done_bytes)} of {format_size(report.requested_bytes)}"
    return f"{verb} {of}: {span_words(report.ranges)}"


def _left_out(pieces: Sequence[Span]) -> Iterator[str]:
    if pieces:
        size = format_size(sum(piece.size for piece in pieces))
        yield f"left out: {size} at {span_words(pieces)} (not a whole granule)"


def _unchanged_bytes(report: ChangeReport) -> int:
    """Return the bytes of whole granules that were as they are now before."""
    left_out = sum(piece.size for piece in report.left_out)
    return report.requested_bytes - left_out - report.done_bytes
