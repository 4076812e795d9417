# SPDX-License-Identifier: GPL-2.0-or-later
"""Block maps to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.blockmap import BlockMap, Region, count_states
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.maps import RamBlockMap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uffdballoon.model.blockstate import BlockState


def letters(states: Iterable[BlockState]) -> bytes:
    return "".join(state.letter for state in states).encode()


def block_map(*regions: Region) -> BlockMap:
    """Make a map of a guest with one RAM block."""
    size_bytes = sum(len(region.letters) for region in regions) * HUGE_BYTES
    states = count_states(region.letters for region in regions)
    block = RamBlockMap(
        idstr="pc.ram",
        size=size_bytes,
        backing=Backing.ANON,
        numa_node=None,
        states=states,
        broken=1,
        whole=2,
        untouched=3,
    )
    return BlockMap(4711, size_bytes, 60.0, regions, (block,))
