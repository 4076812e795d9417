# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault loop's counters as parts of a status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.records.counters import Answers, Latency, Observed, Touches

if TYPE_CHECKING:
    from uffdballoon.core.fault_loop import FaultLoop, LoopStats

_NS_PER_US = 1000


def touches_of(stats: LoopStats) -> Touches:
    """Return what was touched."""
    return Touches(
        ordinary=stats.ordinary,
        granted=stats.granted,
        taken_unseen_bytes=stats.taken_unseen_bytes,
        violations=stats.violations,
        host_reads=stats.host_reads,
        filled_outside=stats.filled_outside,
        slipped_writes=stats.slipped_writes,
        filled_around_pages=stats.around_pages,
    )


def observed_of(stats: LoopStats) -> Observed:
    """Return what was seen of the guest's own balloon."""
    return Observed(
        inflated_pages=stats.observed_inflated,
        deflated_pages=stats.observed_deflated,
        reported_bytes=stats.reported_bytes,
        reported_in_balloon_bytes=stats.reported_pages * PAGE_BYTES,
        regained_bytes=stats.regained_bytes,
        refused_discards=stats.refused_discards,
        lost_records=stats.lost_records,
        resyncs=stats.resyncs,
        doubtful_touches=stats.doubtful,
        given_twice_pages=stats.given_twice,
        pieces_bytes=stats.pieces * PAGE_BYTES,
        late_touches=stats.late,
        late_read_pages=stats.late_reads,
        zapped_again_pages=stats.zapped_again,
        arm_us_max=stats.arm_ns_max // _NS_PER_US,
    )


def answers_of(stats: LoopStats) -> Answers:
    """Return which answers did not go the usual way."""
    return Answers(
        exists=stats.exists,
        retried=stats.retried,
        gone=stats.gone,
        failed=stats.failed,
        failed_errno=stats.failed_errno,
        together=stats.together,
    )


def latency_of(loop: FaultLoop) -> Latency:
    """Return how long answers took."""
    return Latency(p50=loop.answer_ns(500), p99=loop.answer_ns(990), p999=loop.answer_ns(999))
