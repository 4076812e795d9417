# SPDX-License-Identifier: GPL-2.0-or-later
"""What a status tells of the guest's memory: huge pages, RAM blocks, NUMA nodes."""

from dataclasses import dataclass
from typing import Annotated

from uffdballoon.model.reclaiming import Reclaiming
from uffdballoon.model.records.doc import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """Getting memory back that the rest of a huge page keeps."""

    mode: Annotated[Reclaiming, doc("now: split at once; kernel: left to it")]
    rate_bytes_per_s: Annotated[int, doc("at most so much memory is split, bytes a second")]
    resident_bytes: Annotated[int, doc("ballooned bytes that are still there")]
    pinned_bytes: Annotated[
        int, doc("ballooned bytes that are gone, but kept by the rest of a huge page")
    ]
    pinned_blocks: Annotated[int, doc("blocks of 2 MiB that keep them")]
    pending_blocks: Annotated[int, doc("blocks that are yet to be looked at, or tried again")]
    split_blocks: Annotated[int, doc("blocks that were split")]
    failed_blocks: Annotated[int, doc("blocks that were not split after some tries")]
    aged_pages: Annotated[int, doc("pages of 4 KiB that were aged for it (MADV_COLD)")]
    freed_bytes: Annotated[int, doc("ballooned bytes that it freed; 0 when that cannot be told")]
    spent_us: Annotated[int, doc("time spent in process_madvise(2), us")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Khugepaged:
    """What khugepaged would fill again, where nothing kept it from that."""

    enabled: Annotated[str, doc("the host's transparent_hugepage/enabled")]
    max_ptes_none: Annotated[int, doc("the host's: empty pages of 512 that it fills in")]
    eligible_blocks: Annotated[
        int, doc("blocks of 2 MiB that it would fill, were they not trapped")
    ]
    unguarded_blocks: Annotated[int, doc("those that it can fill, as they are not trapped")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragmentation:
    """Blocks of 2 MiB by what the balloon left of them; its limit is null without one."""

    limit_blocks: Annotated[int | None, doc("how many may be broken; null: as many as there are")]
    min_order: Annotated[
        int | None, doc("pieces of less than 2^min_order pages break a block; null without a limit")
    ]
    counted_blocks: Annotated[int, doc("blocks that count as broken")]
    broken_blocks: Annotated[int, doc("ballooned in part")]
    whole_blocks: Annotated[int, doc("ballooned as a whole")]
    untouched_blocks: Annotated[int, doc("not ballooned")]
    stopped_at_bytes: Annotated[
        int | None, doc("bytes left to the guest where its inflate was stopped; null: it was not")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RamBlockStatus:
    """A RAM block of QEMU's, and its blocks of 2 MiB."""

    idstr: Annotated[str, doc("QEMU's name of it")]
    size: Annotated[int, doc("bytes")]
    numa_node: Annotated[int | None, doc("NUMA node of the guest; null: not known")]
    broken: Annotated[int, doc("blocks of 2 MiB that are ballooned in part")]
    whole: Annotated[int, doc("ballooned as a whole")]
    untouched: Annotated[int, doc("not ballooned")]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A NUMA node of the guest."""

    node: Annotated[int | None, doc("its number; null: memory whose node is not known")]
    ram_bytes: Annotated[int, doc("bytes of guest memory on it")]
    ballooned_bytes: Annotated[int, doc("bytes of it in the balloon")]
    floor_bytes: Annotated[int, doc("bytes that are to stay in the balloon of it; 0: none")]
    below_floor: Annotated[bool, doc("whether there are less")]
    reclaimed_bytes: Annotated[int, doc("ballooned bytes that are free, as measured")]
    broken_blocks: Annotated[int, doc("blocks of 2 MiB that are ballooned in part")]
    whole_blocks: Annotated[int, doc("ballooned as a whole")]
    untouched_blocks: Annotated[int, doc("not ballooned")]
    host_nodes: Annotated[dict[int, int], doc("resident bytes by NUMA node of the host")]
    limit_blocks: Annotated[int | None, doc("how many may be broken; null: no limit of the node's")]
    counted_blocks: Annotated[int | None, doc("how many count as broken; null without a limit")]
