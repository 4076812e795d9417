# SPDX-License-Identifier: GPL-2.0-or-later
"""How many huge pages of the host a balloon may break."""

from __future__ import annotations

from dataclasses import dataclass

from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.sizes import parse_size

HUGE_ORDER = 9
"""Of a block of 2 MiB, in pages of 4 KiB."""


@dataclass(frozen=True, slots=True)
class FragmentationLimit:
    """At most ``max_broken_blocks`` blocks of 2 MiB may be ballooned in pieces that are too small.

    Pieces are aligned stretches of 2**min_order pages: a block is broken when one of them is
    ballooned in part. With order 9 that is every block that is ballooned in part.
    None: as many as there are. ``node_max_broken`` are (NUMA node of the guest, blocks) that
    may be broken of that node, besides the limit of all.
    """

    min_order: int = HUGE_ORDER
    max_broken_blocks: int | None = 0
    node_max_broken: tuple[tuple[int, int], ...] = ()


KEEP_GUEST_PERFORMANCE = FragmentationLimit()
"""Do not reduce guest performance: no huge page may be broken."""


def parse_broken(text: str) -> int:
    """Read how many blocks may be broken: a number, or a size, of which whole blocks count.

    Raises UsageError.
    """
    stripped = text.strip()
    if stripped.isascii() and stripped.isdigit():
        return _checked(int(stripped[:20]), text)
    return _checked(parse_size(stripped) // HUGE_BYTES, text)


def _checked(blocks: int, text: str) -> int:
    if blocks * HUGE_BYTES >= 1 << 62:
        raise UsageError(
            f"{text!r} is too many blocks",
            why="no address space holds them",
            hint="give a number of blocks of 2 MiB, or a size with a unit",
        )
    return blocks
