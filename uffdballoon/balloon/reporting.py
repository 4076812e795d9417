# SPDX-License-Identifier: GPL-2.0-or-later
"""An enforcer's counters in the shapes of ``status --json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uffdballoon.model.touch import Action

if TYPE_CHECKING:
    from uffdballoon.core.fault_loop import FaultLoop, LoopStats

_NS_PER_US = 1000


def loop_report(loop: FaultLoop, stats: LoopStats) -> dict[str, Any]:
    """Return what the fault loop saw and did."""
    return {
        "windows": stats.windows,
        "armed_bytes": stats.armed_bytes,
        "touches": {
            "ordinary": stats.ordinary,
            "granted": stats.granted,
            "violations": stats.violations,
            "host_reads": stats.host_reads,
            "filled_outside": stats.filled_outside,
            "slipped_writes": stats.slipped_writes,
            "filled_around_pages": stats.around_pages,
        },
        "actions": {
            action.value: count
            for action, count in stats.actions.items()
            if action is not Action.NONE
        },
        "observed": {
            "inflated_pages": stats.observed_inflated,
            "deflated_pages": stats.observed_deflated,
            "reported_bytes": stats.reported_bytes,
            "refused_discards": stats.refused_discards,
            "lost_records": stats.lost_records,
            "resyncs": stats.resyncs,
            "doubtful_touches": stats.doubtful,
            "late_touches": stats.late,
            "late_read_pages": stats.late_reads,
            "zapped_again_pages": stats.zapped_again,
            "arm_us_max": stats.arm_ns_max // _NS_PER_US,
        },
        "events_dropped": stats.events_dropped,
        "answers": {
            "exists": stats.exists,
            "retried": stats.retried,
            "gone": stats.gone,
            "failed": stats.failed,
            "together": stats.together,
        },
        "latency_ns": {
            name: loop.answer_ns(permille)
            for name, permille in (("p50", 500), ("p99", 990), ("p999", 999))
        },
        "latency_histogram_ns": loop.answer_histogram(),
    }
