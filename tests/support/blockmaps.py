# SPDX-License-Identifier: GPL-2.0-or-later
"""Block maps to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.blockmap import BlockMap, RamBlockTally, Region, Tally, count_states

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uffdballoon.model.blockmap import BlockState


def letters(states: Iterable[BlockState]) -> bytes:
    return "".join(state.letter for state in states).encode()


def block_map(*regions: Region) -> BlockMap:
    """Make a map of a guest with one RAM block."""
    size_bytes = sum(len(region.letters) for region in regions) * HUGE_BYTES
    states = count_states(region.letters for region in regions)
    tally = Tally(1, 2, 3)
    block = RamBlockTally("pc.ram", size_bytes, "anon", None, states, tally)
    return BlockMap(4711, size_bytes, 60.0, regions, (block,))
