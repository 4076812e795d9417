# SPDX-License-Identifier: GPL-2.0-or-later
"""Which observer: the one that was asked for, or the best that works, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.errors import (
    PermissionDeniedError,
    QmpError,
    UnsupportedError,
    UsageError,
)
from uffdballoon.host.uffd import Feature
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.ram import Backing
from uffdballoon.model.terms import ContractKind
from uffdballoon.observe.observers import (
    DirectObserver,
    EventObserver,
    LogOfBalloon,
    MonitorObserver,
    Observer,
    ScanObserver,
    TraceObserver,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.model.ram import RamBlock, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the choice depends on.

    ``has_device`` and ``reports_free_pages`` (virtio 1.2, 5.5.6.7) are of the
    balloon device; None where nobody could be asked. With ``count_reported`` the contract
    wants to be told of these reports. ``kept_trace`` are the fds
    of one that a keeper held, closed unless they are gone on with. ``open_log`` has the VMM tell
    of each page; None without a monitor. ``shared_with`` says who else has the guest's memory, by
    other mappings or pinned; empty when nobody has.
    """

    pid: int
    blocks: Sequence[RamBlock]
    features: Feature
    contract: ContractKind
    has_device: bool | None
    reports_free_pages: bool | None
    segments: Sequence[Segment] = ()
    open_log: Callable[[], LogOfBalloon] | None = None
    kept_trace: Sequence[int] = ()
    count_reported: bool = False
    shared_with: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    observer: Observer
    why: str


def choose(wanted: ObserverKind | None, circumstances: Circumstances) -> Chosen:
    """Set an observer up; None for the best that works.

    Raises UsageError for one that cannot serve the contract, UnsupportedError,
    PermissionDeniedError and QmpError for one that cannot be had.
    """
    chosen = _choose(wanted, circumstances)
    if chosen.observer.kind is not ObserverKind.TRACE:
        for fd in circumstances.kept_trace:
            os.close(fd)
    return chosen


def _choose(wanted: ObserverKind | None, circumstances: Circumstances) -> Chosen:
    if wanted is not None:
        refuse_unless_it_serves(wanted, circumstances)
        return Chosen(_set_up(wanted, circumstances), "as asked for")
    if circumstances.has_device is False and not circumstances.count_reported:
        return Chosen(DirectObserver(), "the guest has no balloon device")
    refusals = []
    for kind in _in_order(circumstances):
        try:
            refuse_unless_it_serves(kind, circumstances)
            observer = _set_up(kind, circumstances)
        except (UsageError, UnsupportedError, PermissionDeniedError, QmpError) as refusal:
            refusals.append(f"{kind.value} not: {refusal}")
            continue
        return Chosen(observer, "; ".join(refusals) or "it tells every page, in and out")
    raise UnsupportedError(  # to nothing else but count_reported direct is not good enough
        "what is reported free cannot be counted",
        why="; ".join(refusals),
        hint="leave --count-reported out, or see to one of these",
        pid=circumstances.pid,
    )


def _in_order(circumstances: Circumstances) -> list[ObserverKind]:
    """Of pieces of huge pages QEMU makes no system call that could be traced: its log tells."""
    log_first = _has_huge_pages(circumstances.blocks)
    return sorted(ObserverKind, key=lambda kind: log_first and kind is not ObserverKind.MONITOR)


def _has_huge_pages(blocks: Sequence[RamBlock]) -> bool:
    return any(block.backing is Backing.HUGETLBFS for block in blocks)


def refuse_unless_it_serves(kind: ObserverKind, circumstances: Circumstances) -> None:
    """Raise UsageError or UnsupportedError for an observer that cannot serve the contract."""
    if circumstances.count_reported:
        _refuse_unless_reports_are_told(kind, circumstances)
    told = circumstances.contract is ContractKind.TOLD
    if kind is ObserverKind.DIRECT or not told:
        return
    if not kind.tells_deflates:
        raise UsageError(
            f"observer {kind.value} cannot serve the contract told",
            why="it sees what the guest gives up, and not what it takes back: "
            "an honest guest's touches would be violations",
            hint="use --observer trace or monitor, or --contract cap --floor SIZE",
        )
    if kind is ObserverKind.MONITOR:
        return  # of reports it is told nothing
    if circumstances.reports_free_pages and _has_huge_pages(circumstances.blocks):
        raise UnsupportedError(
            "the contract told cannot be kept here",
            why="the balloon device reports free pages, and on hugetlbfs a report looks like "
            "an inflate: both give up 2 MiB at a time",
            hint="use --observer monitor, --contract cap --floor SIZE, --observer direct, or a "
            "device with free-page-reporting=off",
            pid=circumstances.pid,
        )


def _refuse_unless_reports_are_told(kind: ObserverKind, circumstances: Circumstances) -> None:
    if circumstances.has_device is False or circumstances.reports_free_pages is False:
        raise UnsupportedError(
            "what is reported free cannot be counted",
            why="the guest has no balloon device that reports free pages",
            hint="leave --count-reported out, or give the device free-page-reporting=on",
            pid=circumstances.pid,
        )
    if not kind.tells_reports:
        raise UsageError(
            f"observer {kind.value} tells of no reports",
            why="what is reported free shall be counted",
            hint="use --observer trace, or leave --count-reported out",
        )


def _set_up(kind: ObserverKind, circumstances: Circumstances) -> Observer:
    if kind is ObserverKind.TRACE:
        return TraceObserver(circumstances.pid, circumstances.blocks, circumstances.kept_trace)
    if kind is ObserverKind.MONITOR:
        return _monitor_observer(circumstances)
    if kind is ObserverKind.EVENT:
        lacking = EventObserver.wanted & ~circumstances.features
        if lacking:
            raise UnsupportedError(
                "observer event cannot be had",
                why=f"this kernel's userfaultfd lacks {lacking.name}",
                hint="use another observer",
            )
        return EventObserver()
    return ScanObserver() if kind is ObserverKind.SCAN else DirectObserver()


def _monitor_observer(circumstances: Circumstances) -> MonitorObserver:
    if circumstances.open_log is None:
        raise no_monitor_error(circumstances.pid)
    if _has_huge_pages(circumstances.blocks):
        _refuse_unless_gathered(circumstances)
    return MonitorObserver(circumstances.pid, circumstances.open_log, circumstances.segments)


def _refuse_unless_gathered(circumstances: Circumstances) -> None:
    """QEMU tells of huge pages by pieces of 4 KiB: we give back those that are whole."""
    why = ""
    if any(
        block.backing is Backing.HUGETLBFS and not block.shared for block in circumstances.blocks
    ):
        why = "its huge pages (hugetlbfs) are mapped privately: no file of ours has them"
    elif not circumstances.features & Feature.WP_HUGETLBFS_SHMEM:
        why = (
            "this kernel's userfaultfd lacks WP_HUGETLBFS_SHMEM: what the guest writes to a huge "
            "page while it is given back would be lost"
        )
    elif circumstances.shared_with:
        why = (
            "what others write to a huge page while it is given back would be lost: "
            + circumstances.shared_with
        )
    if why:
        raise UnsupportedError(
            "observer monitor cannot be had",
            why=why,
            hint="use another observer",
            pid=circumstances.pid,
        )


def no_monitor_error(pid: int) -> UsageError:
    return UsageError(
        "observer monitor needs the monitor",
        why="QEMU is asked by QMP to tell of each page, and no socket of it was given, or another "
        "client has it",
        hint="give --qmp PATH, or use another observer",
        pid=pid,
    )
