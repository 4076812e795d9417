# SPDX-License-Identifier: GPL-2.0-or-later
"""What a manager has counted and measured since it attached."""

from dataclasses import dataclass
from typing import Annotated

from uffdballoon.model.records.doc import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class Touches:
    """Touches of what is trapped, by what they were."""

    ordinary: Annotated[int, doc("of memory that the guest owns")]
    granted: Annotated[int, doc("of ballooned memory that the contract allows")]
    taken_unseen_bytes: Annotated[
        int, doc("bytes of ballooned memory that were taken back where nothing was trapped")
    ]
    violations: Annotated[int, doc("of ballooned memory that it does not allow")]
    host_reads: Annotated[
        int,
        doc("of ballooned memory by threads that are no vCPU, as of a migration: they saw zeros"),
    ]
    filled_outside: Annotated[int, doc("of ballooned pages that another process had filled")]
    slipped_writes: Annotated[
        int, doc("writes between a zero page and its protection: found and judged")
    ]
    filled_around_pages: Annotated[
        int, doc("pages of 4 KiB that were filled beside those that were touched")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was seen of the guest's own inflates and deflates."""

    inflated_pages: Annotated[int, doc("pages of 4 KiB that it gave up")]
    deflated_pages: Annotated[int, doc("pages of 4 KiB that it took back")]
    reported_bytes: Annotated[int, doc("bytes that it reported free")]
    reported_in_balloon_bytes: Annotated[
        int, doc("of these, what is in the balloon now; under cap, where that is counted")
    ]
    regained_bytes: Annotated[int, doc("of these, what was granted again as whole blocks of 2 MiB")]
    refused_discards: Annotated[int, doc("discards of QEMU's that the kernel refused: locked RAM")]
    lost_records: Annotated[int, doc("records of the trace that were lost")]
    resyncs: Annotated[int, doc("losses after which memory was looked at instead")]
    doubtful_touches: Annotated[int, doc("touches that were granted for that")]
    given_twice_pages: Annotated[
        int, doc("pages that it gave up though they were in the balloon already, where QEMU logs")
    ]
    pieces_bytes: Annotated[
        int,
        doc("bytes that it gave up of pages of hugetlbfs that are not whole in its balloon: kept"),
    ]
    late_touches: Annotated[int, doc("pages that were written before their trap was there")]
    late_read_pages: Annotated[int, doc("pages that were read before their trap was there: zeros")]
    zapped_again_pages: Annotated[
        int,
        doc("pages of zeros, beside a touched one meanwhile, or lent in private huge pages"),
    ]
    arm_us_max: Annotated[int, doc("longest time from an inflate to its trap, us")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers to faults that did not go the usual way."""

    exists: Annotated[int, doc("another answer was first")]
    retried: Annotated[int, doc("tried again, as the mappings were changing")]
    gone: Annotated[int, doc("the page or the target had gone")]
    failed: Annotated[int, doc("the kernel refused: the thread tried again")]
    failed_errno: Annotated[dict[str, int], doc("the same by errno, such as EINVAL")]
    together: Annotated[int, doc("ordinary touches that the answer to another had answered, too")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time from a fault to its answer, ns; 0 while there was none."""

    p50: Annotated[int, doc("median, ns")]
    p99: Annotated[int, doc("99th percentile, ns")]
    p999: Annotated[int, doc("99.9th percentile, ns")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """Stops of the thread of the target that system calls are run in."""

    thread: Annotated[str, doc("what that thread is: the RCU thread, or the main thread")]
    main_thread_stops: Annotated[int, doc("how often the main thread was stopped")]
    attach: Annotated[int, doc("to obtain the userfaultfd, us; 0 when it was taken over")]
    zap_count: Annotated[int, doc("stops to zap")]
    zap_max: Annotated[int, doc("the longest of them, us")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What a manager may still do."""

    on: Annotated[bool, doc("whether it gave up what it does not need")]
    capabilities: Annotated[tuple[str, ...], doc("capabilities that it holds, as CAP_...")]
