# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of an attached target."""

import enum
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, UnsetType

from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.records.balloon import BalloonAccount, GuestMemory
from uffdballoon.model.records.counters import (
    Answers,
    Latency,
    Observed,
    Sandbox,
    Stops,
    Touches,
)
from uffdballoon.model.records.doc import doc
from uffdballoon.model.records.memory import (
    Fragmentation,
    Khugepaged,
    NodeStatus,
    RamBlockStatus,
    Reclaim,
)
from uffdballoon.model.records.spans import BalloonRanges
from uffdballoon.model.terms import ContractKind
from uffdballoon.model.touch import Access, Action

UffdMethod: TypeAlias = Literal["direct", "passed", "kept"]
ReclaimedSource: TypeAlias = Literal["kpageflags", "pagemap"]


class TargetState(enum.Enum):
    """Whether the target is there."""

    ATTACHED = "attached"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractStatus:
    """What the guest has promised, and whether it holds."""

    kind: Annotated[ContractKind, doc("how a page may leave the balloon")]
    floor_bytes: Annotated[int, doc("bytes that are to stay in the balloon; 0: no floor")]
    below_floor: Annotated[bool, doc("whether there are less")]
    limit_bytes: Annotated[
        int | None, doc("bytes of its RAM that the floor leaves the guest; null: it has no floor")
    ]
    count_reported: Annotated[
        bool, doc("whether what free page reporting gives back is in the balloon")
    ]
    in_grace: Annotated[bool, doc("whether the guest is in its boot grace")]
    grace_left_s: Annotated[
        float | UnsetType, doc("s until it ends; in a grace that time limits")
    ] = UNSET
    grace_left_bytes: Annotated[
        int | UnsetType, doc("bytes until it ends; in a grace that bytes limit")
    ] = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A touch that is not answered yet: frozen, throttled, or waiting for us."""

    gpa: Annotated[int | None, doc("guest-physical address of what it waits for; null: no RAM")]
    size: Annotated[int, doc("bytes that are trapped: a page of the host's")]
    vcpu: Annotated[int | None, doc("number of the vCPU; null: another thread, or not known")]
    tid: Annotated[int, doc("thread that waits, for `release --tid`")]
    access: Annotated[Access, doc("what it wants to do")]
    action: Annotated[Action, doc("what holds it")]
    held_s: Annotated[float, doc("s since it waits")]
    left_s: Annotated[float | None, doc("s until the next rung; null: until it is released")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerStatus:
    """Who enforces."""

    pid: Annotated[int, doc("its process")]
    since_ns: Annotated[int, doc("when it began to, ns since 1970")]
    monitor: Annotated[bool, doc("whether it reaches QEMU's monitor")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStatus:
    """How the manager keeps up."""

    turns: Annotated[int, doc("turns that its loop has taken")]
    longest_turn_us: Annotated[int, doc("the longest of them, without its sleep, us")]
    failures: Annotated[int, doc("errors that its boundary caught; events of kind failed tell")]
    events_missed: Annotated[int, doc("events that followers read too slowly for")]
    events_unwritten: Annotated[int, doc("events that `attach --events` could not write")] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of an attached target."""

    pid: Annotated[int, doc("the target")]
    vm: Annotated[str, doc("the target's name, as -name has it; empty without one")] = ""
    state: Annotated[TargetState, doc("whether it is there")]
    uffd_method: Annotated[UffdMethod, doc("how the userfaultfd was obtained; kept: taken over")]
    observer: Annotated[ObserverKind, doc("what tells of the guest's inflates and deflates")]
    contract: Annotated[ContractStatus, doc("what the guest has promised")]
    policy: Annotated[str, doc("the ladder, as `attach --policy` takes it")]
    ram_bytes: Annotated[int, doc("bytes of guest memory that can be in the balloon")]
    nominal_ram_bytes: Annotated[
        int | UnsetType,
        doc("the guest's size, its -m and DIMMs: with what firmware shows its ROMs over"),
    ] = UNSET
    ballooned_bytes: Annotated[int, doc("bytes in the balloon by the ledger")]
    reclaimed_bytes: Annotated[int, doc("ballooned bytes that are free, as measured")]
    reclaimed_source: Annotated[ReclaimedSource, doc("what that was measured by")]
    surveyed_age_s: Annotated[
        float | None,
        doc(
            "s since page tables and mappings were looked at for `reclaimed_bytes`, `reclaim`, "
            "`khugepaged`, `vmas` and `cut_huge_mappings`; null: not yet, and they are 0"
        ),
    ]
    broken_blocks: Annotated[int, doc("blocks of 2 MiB that are ballooned in part")]
    reclaim: Annotated[Reclaim, doc("getting back what huge pages keep")]
    khugepaged: Annotated[Khugepaged, doc("what it is kept from")]
    fragmentation: Annotated[Fragmentation, doc("huge pages that the balloon broke")]
    ram_blocks: Annotated[tuple[RamBlockStatus, ...], doc("each RAM block of QEMU's")]
    nodes: Annotated[tuple[NodeStatus, ...], doc("each NUMA node of the guest")]
    balloon: Annotated[BalloonAccount, doc("the ledger beside what the guest says")]
    ram_change_bytes: Annotated[
        int | None, doc("RAM more than at the attach, below zero: less; null: nobody can say")
    ]
    guest_memory: Annotated[
        GuestMemory | None, doc("what the guest's driver tells; null: nobody can be asked")
    ]
    vmas: Annotated[int, doc("mappings in the target")]
    cut_huge_mappings: Annotated[int, doc("mappings of huge pages that windows cut, for good")]
    held: Annotated[tuple[Held, ...], doc("touches that are not answered yet")]
    inflated_pages_total: Annotated[int, doc("pages of 4 KiB that went into the balloon")]
    deflated_pages_total: Annotated[int, doc("pages of 4 KiB that came out")]
    windows: Annotated[int, doc("ranges that are trapped")]
    armed_bytes: Annotated[int, doc("bytes in them that are trapped now")]
    unarmed_bytes: Annotated[
        int, doc("bytes in them that are not, for all that is touched there is granted; under cap")
    ]
    traps_always: Annotated[bool, doc("whether there never are any of these")]
    yielded: Annotated[
        bool,
        doc("whether all traps are lifted: QEMU has a userfaultfd of its own, or `yield` was said"),
    ]
    touches: Annotated[Touches, doc("what was touched")]
    actions: Annotated[dict[Action, int], doc("what was done about it, how often")]
    observed: Annotated[Observed, doc("what was seen of the guest's own balloon")]
    events_dropped: Annotated[int, doc("events that nobody took in time")]
    answers: Annotated[Answers, doc("answers that did not go the usual way")]
    latency_ns: Annotated[Latency, doc("time from a fault to its answer")]
    latency_histogram_ns: Annotated[
        tuple[tuple[int, int], ...], doc("upper bound of a bucket in ns, and its answers")
    ]
    stopped_us: Annotated[Stops, doc("stops of a thread of the target")]
    manager: Annotated[ManagerStatus | UnsetType, doc("who enforces; of a manager only")] = UNSET
    ranges: Annotated[
        BalloonRanges | UnsetType, doc("what is in the balloon; of `--ranges` only")
    ] = UNSET
    loop: Annotated[LoopStatus | UnsetType, doc("the manager's own loop; of a manager only")] = (
        UNSET
    )
    sandbox: Annotated[
        Sandbox | UnsetType, doc("what the manager may still do; of a manager only")
    ] = UNSET
