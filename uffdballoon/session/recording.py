# SPDX-License-Identifier: GPL-2.0-or-later
"""The balloon as it is, run by run, for who reckons with it elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.job import Turn
from uffdballoon.model.recording import Recording

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


def _ballooned_runs(attached: Attachment) -> Iterator[tuple[int, int]]:
    """Yield the balloon's runs as (gfn, pages)."""
    for segment in attached.layout.segments:
        for run in attached.enforcer.ledger.runs(segment.hva_range):
            gpa = segment.gpa + run.start - segment.hva
            yield gpa // PAGE_BYTES, run.size_bytes // PAGE_BYTES
