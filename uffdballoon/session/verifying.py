# SPDX-License-Identifier: GPL-2.0-or-later
"""Where ledger, page tables and guest disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.records.balloon import Verification
from uffdballoon.model.records.spans import Span

if TYPE_CHECKING:
    from uffdballoon.model.addresses import GpaRange
    from uffdballoon.model.job import Job
    from uffdballoon.session.attachment import Attachment
    from uffdballoon.session.driver import Driver


def disagreeing(attached: Attachment) -> Job[list[GpaRange]]:
    """List ballooned stretches that hold memory in the target: there should be none."""
    found = yield from attached.enforcer.disagreeing()
    return [attached.layout.to_gpa_range(hva) for hva in found]


def verifying(attached: Attachment, driver: Driver) -> Job[Verification]:
    """Walk the page tables; list where ledger and kernel, or the guest, disagree.

    For a quiet moment: what is being given up right now is in the ledger, and
    still there.
    """
    attached.follower.look()
    found = yield from disagreeing(attached)
    yield from attached.machine.asking()
    ballooned_bytes = attached.enforcer.ledger.ballooned_bytes
    with attached.machine.answered():
        account = driver.account(ballooned_bytes)
    return Verification(
        ballooned_bytes=ballooned_bytes,
        actual_bytes=account.actual_bytes,
        unaccounted_bytes=account.unaccounted_bytes,
        disagreements=tuple(map(Span.of, found)),
    )
