# SPDX-License-Identifier: GPL-2.0-or-later
"""Event lines: a touch that was not ordinary, or a notice of something else."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from msgspec import UNSET, UnsetType

from uffdballoon.model.records.doc import doc
from uffdballoon.model.records.encoding import read
from uffdballoon.model.records.policy import PolicyInForce
from uffdballoon.model.touch import Access, Action, Role, Verdict


class EventKind(enum.Enum):
    """What an event line tells of; the first four are touches."""

    ORDINARY = "ordinary"
    GRANTED = "granted"
    VIOLATION = "violation"
    NO_MEMORY = "no-memory"
    INFLATE = "inflate"
    DEFLATE = "deflate"
    RESYNC = "resync"
    LOG_TAKEN = "log-taken"
    NOT_ZAPPED = "not-zapped"
    NOT_TRAPPED = "not-trapped"
    FRAGMENTATION_LIMIT = "fragmentation-limit"
    PAUSED = "paused"
    PAUSE_FAILED = "pause-failed"
    POISON_FAILED = "poison-failed"
    RESET = "reset"
    RESET_FAILED = "reset-failed"
    SHUTDOWN = "shutdown"
    GUEST_PANICKED = "guest-panicked"
    SUSPENDED = "suspended"
    WOKEN = "woken"
    STOPPED = "stopped"
    RESUMED = "resumed"
    BALLOON_CHANGE = "balloon-change"
    MIGRATION = "migration"
    YIELDED = "yielded"
    TAKEN_UP = "taken-up"
    NOT_TAKEN_UP = "not-taken-up"
    YIELD_FAILED = "yield-failed"
    MEMORY_CHANGED = "memory-changed"
    POLICY_CHANGED = "policy-changed"
    MONITOR_LOST = "monitor-lost"
    MONITOR_BACK = "monitor-back"
    MONITOR_GARBLED = "monitor-garbled"
    MISSED = "missed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchEvent:
    """A touch that was not ordinary."""

    time_ns: Annotated[int, doc("when it was answered, ns since 1970")]
    kind: Annotated[EventKind, doc("the verdict, or no-memory")]
    gpa: Annotated[int | None, doc("guest-physical address of what was trapped; null: no RAM now")]
    gpa_hex: Annotated[
        str | UnsetType | None, doc("`gpa` as text, such as `0x8000000`; null where that is")
    ] = UNSET
    size: Annotated[int, doc("bytes that were answered for")]
    vcpu: Annotated[int | None, doc("number of the vCPU; null: another thread, or not known")]
    tid: Annotated[int, doc("thread that touched, as its id is here")]
    access: Annotated[Access, doc("what it did")]
    verdict: Annotated[Verdict, doc("what the contract says of it")]
    action: Annotated[Action, doc("the rung of the ladder that answered, or how it went on")]
    role: Annotated[Role, doc("who touched")]
    sequence: Annotated[int, doc("counts on over events that were dropped")]
    answer_ns: Annotated[int, doc("ns from reading the fault to right before its answer")]
    pid: Annotated[int | UnsetType, doc("the target; of a manager's events")] = UNSET
    vm: Annotated[
        str | UnsetType, doc("its name, as -name has it; of a manager's events, where it has one")
    ] = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An event line that is no touch: what only touches have is null."""

    time_ns: Annotated[int, doc("when it was told, ns since 1970")]
    kind: Annotated[EventKind, doc("what it tells of")]
    gpa: Annotated[None, doc("of touches only")] = None
    size: Annotated[int | None, doc("bytes that went in or out, or that are in the balloon")] = None
    vcpu: Annotated[None, doc("of touches only")] = None
    tid: Annotated[None, doc("of touches only")] = None
    access: Annotated[None, doc("of touches only")] = None
    verdict: Annotated[None, doc("of touches only: it tells the two apart")] = None
    action: Annotated[None, doc("of touches only")] = None
    actual_bytes: Annotated[
        int | UnsetType, doc("left to the guest; of balloon-change and fragmentation-limit")
    ] = UNSET
    node: Annotated[
        int | UnsetType | None,
        doc("NUMA node of the guest whose limit it is, null: all; of fragmentation-limit"),
    ] = UNSET
    broken_blocks: Annotated[
        int | UnsetType, doc("blocks of 2 MiB that count as broken; of fragmentation-limit")
    ] = UNSET
    limit_blocks: Annotated[
        int | UnsetType, doc("blocks of 2 MiB that may be broken; of fragmentation-limit")
    ] = UNSET
    ram_change_bytes: Annotated[
        int | UnsetType, doc("RAM more than at the attach, below zero: less; of memory-changed")
    ] = UNSET
    before: Annotated[PolicyInForce | UnsetType, doc("what was in force; of policy-changed")] = (
        UNSET
    )
    after: Annotated[PolicyInForce | UnsetType, doc("what is now; of policy-changed")] = UNSET
    count: Annotated[int | UnsetType, doc("events that are missing here; of missed")] = UNSET
    why: Annotated[str | UnsetType, doc("a sentence for a person, where there is more to say")] = (
        UNSET
    )
    pid: Annotated[int | UnsetType, doc("the target; of a manager's events")] = UNSET
    vm: Annotated[
        str | UnsetType, doc("its name, as -name has it; of a manager's events, where it has one")
    ] = UNSET


Event: TypeAlias = TouchEvent | Notice


def read_event(value: object) -> Event:
    """Make an event of parsed JSON; raise ControlError for anything else."""
    is_notice = isinstance(value, Mapping) and value.get("verdict") is None
    return read(value, Notice) if is_notice else read(value, TouchEvent)
