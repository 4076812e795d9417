# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of the balloon as lines for a person: one that was made, and one under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.records.balloon import BalloonProgress
    from uffdballoon.model.records.changes import ChangeReport


def change_lines(done: str, report: ChangeReport) -> Iterator[str]:
    """Say what an inflate or a deflate changed, and what it left out; ``done`` is its verb."""
    where = ", ".join(f"gpa {span.gpa:#x}-{span.gpa + span.size:#x}" for span in report.ranges)
    of = f"{format_size(report.done_bytes)} of {format_size(report.requested_bytes)}"
    yield f"{done} {of}: {where}"
    for piece in report.left_out:
        yield (f"left out: {format_size(piece.size)} at gpa {piece.gpa:#x} (not a whole granule)")


def progress_line(progress: BalloonProgress) -> str:
    """Say how far the guest's driver is."""
    actual = progress.actual_bytes
    has = "nothing is known of" if actual is None else f"{format_size(actual)} left to"
    asked = format_size(progress.target_bytes)
    line = f"{progress.state.value}: {has} the guest, {asked} asked for"
    return f"{line}; {progress.why}" if progress.why else line
