# SPDX-License-Identifier: GPL-2.0-or-later
"""A status as rows for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from uffdballoon.cli.text.times import written_time
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.printable import printable
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind

if TYPE_CHECKING:
    from uffdballoon.model.records.balloon import GuestMemory
    from uffdballoon.model.records.counters import Latency, Touches
    from uffdballoon.model.records.memory import Fragmentation, Khugepaged, NodeStatus
    from uffdballoon.model.records.status import ContractStatus, Held, Status


def status_rows(status: Status) -> list[tuple[str, str]]:
    """Return a status as (name, value) rows."""
    touches, stopped = status.touches, status.stopped_us
    return [
        (
            "target",
            f"{target_words(status)} ({status.state.value}, userfaultfd {status.uffd_method})",
        ),
        ("contract", f"{_contract(status.contract)}, observer {status.observer.value}"),
        ("policy", status.policy),
        *_manager(status),
        ("guest RAM", format_size(nominal_bytes(status))),
        ("in the balloon", format_size(status.ballooned_bytes)),
        ("reclaimed", _reclaimed(status)),
        ("kept from khugepaged", _guarded(status.khugepaged)),
        ("huge pages", _broken(status.fragmentation)),
        *(("node", _node(node)) for node in status.nodes if len(status.nodes) > 1),
        *_told_by_the_guest(status),
        ("windows", f"{status.windows}, {_armed(status)} ({_mappings(status)})"),
        *([("yielded", "all traps: nothing is enforced")] if status.yielded else []),
        ("violations", f"{touches.violations}"),
        (
            "other touches",
            ", ".join(
                (
                    f"{touches.granted} granted",
                    f"{touches.ordinary} ordinary",
                    f"{touches.host_reads} host reads",
                    *_unseen(touches),
                )
            ),
        ),
        ("answered by", answered_by(status)),
        *(("held", _held(touch)) for touch in status.held),
        ("answer time", answer_time(status.latency_ns)),
        (
            f"{stopped.thread} stopped",
            f"{stopped.attach} us to attach, at most {stopped.zap_max} us at a time to zap",
        ),
        ("events dropped", f"{status.events_dropped}"),
    ]


def target_words(status: Status) -> str:
    """Say which process it is, and its name where it has one."""
    return f"{printable(status.vm)}, process {status.pid}" if status.vm else str(status.pid)


def answered_by(status: Status) -> str:
    """Name the actions that were taken, each with how often."""
    return ", ".join(f"{a.value} {n}" for a, n in status.actions.items() if n) or "-"


def nominal_bytes(status: Status) -> int:
    """Return the size that the guest was given, as every verb tells it."""
    told = status.nominal_ram_bytes
    return status.ram_bytes if told is UNSET else told


def answer_time(latency: Latency) -> str:
    """Say how long answers took; "-" as long as there was none."""
    of = {"p50": latency.p50, "p99": latency.p99, "p999": latency.p999}
    if not any(of.values()):
        return "-"
    return ", ".join(f"{name} {ns / 1000:.1f} us" for name, ns in of.items())


def _manager(status: Status) -> list[tuple[str, str]]:
    manager = status.manager
    if manager is UNSET:
        return []
    monitor = "with" if manager.monitor else "without"
    since = written_time(manager.since_ns)
    return [("manager", f"{manager.pid}, since {since}, {monitor} a monitor")]


def _unseen(touches: Touches) -> list[str]:
    taken_bytes = touches.taken_unseen_bytes
    return [f"{format_size(taken_bytes)} taken untrapped"] if taken_bytes else []


def _armed(status: Status) -> str:
    text = f"{format_size(status.armed_bytes)} armed"
    if status.unarmed_bytes:
        text += f", {format_size(status.unarmed_bytes)} not, far above the floor"
    return text


def _mappings(status: Status) -> str:
    text = f"{status.vmas} mappings in the target"
    if status.cut_huge_mappings:
        text += f", {status.cut_huge_mappings} of them cut from huge pages, for good"
    return text


def _reclaimed(status: Status) -> str:
    reclaim = status.reclaim
    parts = [f"{format_size(status.reclaimed_bytes)}, by {status.reclaimed_source}"]
    if reclaim.pinned_bytes:
        parts.append(f"{format_size(reclaim.pinned_bytes)} kept by huge pages")
    if reclaim.resident_bytes:
        parts.append(f"{format_size(reclaim.resident_bytes)} there")
    if status.surveyed_age_s is None:
        parts.append("not looked at yet")
    elif status.surveyed_age_s >= 1:
        parts.append(f"looked at {status.surveyed_age_s:.0f} s ago")
    return "; ".join(parts)


def _guarded(khugepaged: Khugepaged) -> str:
    unguarded = khugepaged.unguarded_blocks
    apart = f"; {unguarded} are not armed" if unguarded else ""
    return f"{khugepaged.eligible_blocks} blocks of 2 MiB{apart}"


def _broken(found: Fragmentation) -> str:
    text = (
        f"{found.broken_blocks} broken, {found.whole_blocks} whole, "
        f"{found.untouched_blocks} untouched"
    )
    if found.limit_blocks is not None:
        text += f"; {found.counted_blocks} of {found.limit_blocks} that may be broken"
    if found.stopped_at_bytes is not None:
        text += f"; stopped with {format_size(found.stopped_at_bytes)} left to the guest"
    return text


def _node(node: NodeStatus) -> str:
    number = "?" if node.node is None else node.node
    host = ", ".join(
        f"{format_size(size)} on host node {there}" for there, size in node.host_nodes.items()
    )
    floor, limit = "", ""
    if node.floor_bytes:
        floor = f", floor {format_size(node.floor_bytes)} ({_kept(node)})"
    if node.limit_blocks is not None:
        limit = f", {node.counted_blocks} of {node.limit_blocks} that may be"
    return (
        f"{number}: {format_size(node.ballooned_bytes)} of {format_size(node.ram_bytes)} in "
        f"the balloon{floor}; {node.broken_blocks} broken{limit}, {node.whole_blocks} whole, "
        f"{node.untouched_blocks} untouched; {host or 'nothing'} resident"
    )


def _told_by_the_guest(status: Status) -> list[tuple[str, str]]:
    rows = []
    balloon, seen = status.balloon, status.observed
    if balloon.actual_bytes is not None:
        unseen = balloon.unaccounted_bytes
        apart = f"; {format_size(unseen)} of its balloon not known" if unseen and unseen > 0 else ""
        rows.append(("left to the guest", f"{format_size(balloon.actual_bytes)}{apart}"))
        rows.append(("its balloon", _side_by_side(status, balloon.actual_bytes)))
    if balloon.why:
        rows.append(("why they differ", balloon.why))
    if status.ram_change_bytes:
        rows.append(("RAM since the attach", _ram_change(status.ram_change_bytes)))
    if status.guest_memory is not None:
        rows.append(("the guest's memory", _guest_memory(status.guest_memory)))
    if status.observer is not ObserverKind.DIRECT:
        rows.append(
            (
                "observed",
                (
                    f"{seen.inflated_pages} pages given up, {seen.deflated_pages} taken "
                    f"back, trapped within {seen.arm_us_max / 1000:.1f} ms"
                ),
            )
        )
    if seen.pieces_bytes:
        rows.append(
            (
                "pieces of huge pages",
                f"{format_size(seen.pieces_bytes)} given up, kept until the pages are whole",
            )
        )
    if status.contract.count_reported:
        there, again = seen.reported_in_balloon_bytes, seen.regained_bytes
        rows.append(
            (
                "reported free",
                f"{format_size(there)} in the balloon, {format_size(again)} granted as blocks",
            )
        )
    if seen.resyncs:
        rows.append(("trace", f"lost {seen.lost_records} records, {seen.resyncs} times"))
    return rows


def _side_by_side(status: Status, actual_bytes: int) -> str:
    """Say what was asked for, what the guest says of it, and what the host has of it."""
    has_bytes = nominal_bytes(status) + (status.ram_change_bytes or 0)
    asked_bytes = status.balloon.asked_bytes
    asked = "nothing" if asked_bytes is None else format_size(max(0, has_bytes - asked_bytes))
    return (
        f"{asked} asked for, {format_size(max(0, has_bytes - actual_bytes))} given up by its own "
        f"word, {format_size(status.ballooned_bytes)} known, {format_size(status.reclaimed_bytes)} "
        "freed"
    )


def _ram_change(change_bytes: int) -> str:
    if change_bytes < 0:
        return f"{format_size(-change_bytes)} went"
    return f"{format_size(change_bytes)} came and are not enforced: detach and attach again"


def _guest_memory(told: GuestMemory) -> str:
    if told.age_s is None:
        return "its driver has told nothing yet: ask again"
    values = told.values
    parts = [
        f"{format_size(values[key])} {words}"
        for key, words in (
            ("free-memory", "free"),
            ("available-memory", "available"),
            ("total-memory", "in all"),
            ("swap-in", "swapped in"),
            ("swap-out", "swapped out"),
        )
        if key in values
    ]
    if "major-faults" in values:
        parts.append(f"{values['major-faults']} major faults")
    return f"{', '.join(parts)}; told {told.age_s:.0f} s ago"


def _contract(contract: ContractStatus) -> str:
    if contract.kind is ContractKind.TOLD:
        return "told"
    grace = ", in its boot grace" if contract.in_grace else ""
    limit = contract.limit_bytes
    leaves = "" if limit is None else f", limit {format_size(limit)}"
    leaves += ", with what is reported free" if contract.count_reported else ""
    return f"cap, floor {format_size(contract.floor_bytes)} ({_kept(contract)}{grace}){leaves}"


def _kept(floor: ContractStatus | NodeStatus) -> str:
    return "below it" if floor.below_floor else "kept"


def _held(touch: Held) -> str:
    ends = "until released" if touch.left_s is None else f"for {touch.left_s:.1f} s more"
    gpa = "?" if touch.gpa is None else f"{touch.gpa:#x}"
    return (
        f"tid {touch.tid} by {touch.action.value}, {touch.access.value} of gpa {gpa}, "
        f"for {touch.held_s:.1f} s, {ends}"
    )
