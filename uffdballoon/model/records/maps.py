# SPDX-License-Identifier: GPL-2.0-or-later
"""What each 2 MiB of the guest's memory is."""

from dataclasses import dataclass
from typing import Annotated

from uffdballoon.model.blockstate import BlockState
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.doc import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class RamBlockMap:
    """A RAM block of QEMU's, and its blocks of 2 MiB."""

    idstr: Annotated[str, doc("QEMU's name of it")]
    size: Annotated[int, doc("bytes")]
    backing: Annotated[Backing, doc("what its memory is")]
    numa_node: Annotated[int | None, doc("NUMA node of the guest; null: not known")]
    states: Annotated[dict[BlockState, int], doc("blocks of 2 MiB of the guest's in each state")]
    broken: Annotated[int, doc("blocks of 2 MiB of the host's that are ballooned in part")]
    whole: Annotated[int, doc("ballooned as a whole")]
    untouched: Annotated[int, doc("not ballooned")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRun:
    """Blocks in the same state."""

    gpa: Annotated[int, doc("guest-physical address of the first")]
    size: Annotated[int, doc("bytes, a multiple of block_bytes")]
    state: Annotated[BlockState, doc("what they are")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRegion:
    """Blocks that follow each other without a gap."""

    gpa: Annotated[int, doc("guest-physical address, a multiple of block_bytes")]
    size: Annotated[int, doc("bytes")]
    runs: Annotated[tuple[MapRun, ...], doc("its blocks, in order")]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireRegion:
    """The same in short, over the control socket."""

    gpa: Annotated[int, doc("guest-physical address, a multiple of block_bytes")]
    runs: Annotated[str, doc("its blocks as letters, after a number where one repeats: `12H.3B`")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    """What all maps begin with."""

    pid: Annotated[int, doc("the target")]
    vm: Annotated[str, doc("the target's name, as -name has it; empty without one")] = ""
    block_bytes: Annotated[int, doc("size of a block: 2 MiB")]
    ram_bytes: Annotated[int, doc("bytes of guest memory")]
    recent_s: Annotated[float, doc("s that a block counts as touched")]
    states: Annotated[dict[BlockState, int], doc("blocks in each state")]
    ram_blocks: Annotated[tuple[RamBlockMap, ...], doc("each RAM block of QEMU's")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapReport(MapFacts):
    """The guest's memory, state by state."""

    regions: Annotated[tuple[MapRegion, ...], doc("stretches of guest memory")]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireMap(MapFacts):
    """The guest's memory, as it goes over the control socket."""

    regions: Annotated[tuple[WireRegion, ...], doc("stretches of guest memory")]
