# SPDX-License-Identifier: GPL-2.0-or-later
"""What the states of blocks are called and coloured, in every picture of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.blockstate import BlockState

if TYPE_CHECKING:
    from uffdballoon.model.blockmap import BlockMap

COLOURS = {
    BlockState.ABSENT: "#5f6670",
    BlockState.OWNED_THP: "#1b6ca8",
    BlockState.OWNED_4K: "#7fc0ee",
    BlockState.ARMED: "#9467bd",
    BlockState.BALLOONED: "#2e9e5b",
    BlockState.PARTLY: "#f2b632",
    BlockState.TOUCHED: "#d62828",
}
_WORDS = {
    BlockState.ABSENT: "not in use",
    BlockState.OWNED_THP: "owned, huge pages",
    BlockState.OWNED_4K: "owned, 4k pages",
    BlockState.ARMED: "armed, nothing ballooned",
    BlockState.BALLOONED: "ballooned",
    BlockState.PARTLY: "partly ballooned",
}


def words_of(state: BlockState, recent_s: float) -> str:
    """Name a state for a person."""
    if state is BlockState.TOUCHED:
        return f"touched in the last {recent_s:g} s"
    return _WORDS[state]


def block_rows(blocks: BlockMap) -> list[tuple[str, str, str, str]]:
    """Return (RAM block, broken, whole, untouched) for each RAM block."""
    return [
        (of.idstr, str(of.broken), str(of.whole), str(of.untouched)) for of in blocks.ram_blocks
    ]
