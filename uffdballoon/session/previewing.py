# SPDX-License-Identifier: GPL-2.0-or-later
"""What an inflate would do to memory as it is now; nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.core.ledger import Ledger
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.job import Turn
from uffdballoon.model.place import place
from uffdballoon.model.ram import Backing, merge_hva_ranges
from uffdballoon.model.records.changes import InflatePreview
from uffdballoon.model.records.spans import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.addresses import GpaRange
    from uffdballoon.model.granule import Granule
    from uffdballoon.model.job import Job
    from uffdballoon.session.attachment import Attachment


def previewing(
    attached: Attachment, spans: Sequence[GpaRange], granule: Granule
) -> Job[InflatePreview]:
    """Say what an inflate would take, a part in a step; raise what it would be refused with."""
    turn = Turn()
    placed = []
    for span in spans:
        placed.append(place(attached.layout, span, granule))
        if turn.is_over():
            yield 0.0
    hvas = merge_hva_ranges(put.hva for put in placed)
    attached.guard.refuse_to_break(hvas)
    resident_bytes = yield from attached.enforcer.counting_resident(hvas)
    # Not before the job is in its last turn: the guest's own driver goes on meanwhile.
    now = attached.enforcer.ledger
    after = Ledger(now.blocks)
    now.copy_to(after)
    fresh_pages = sum(after.set(hva) for hva in hvas)
    return InflatePreview(
        requested_bytes=sum(span.size_bytes for span in spans),
        would_do_bytes=fresh_pages * PAGE_BYTES,
        resident_bytes=resident_bytes,
        would_break_blocks=_broken(after) - _broken(now),
        left_out=tuple(Span.of(piece) for put in placed for piece in put.left_out),
        ranges=tuple(Span.of(put.gpa) for put in placed),
    )


def _broken(ledger: Ledger) -> int:
    """Count the blocks of 2 MiB that are ballooned in part; pages of hugetlbfs go whole."""
    return sum(
        ledger.tally(block).broken
        for block in ledger.blocks
        if block.backing is not Backing.HUGETLBFS
    )
