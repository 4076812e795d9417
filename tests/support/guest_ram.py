# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM blocks of a guest that there is not."""

from __future__ import annotations

from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, Hva, HvaRange
from uffdballoon.model.ram import Backing, Layout, RamBlock, Segment

BASE = 0x7F0000000000
_APART = 1 << 32


def ram_block(
    number: int = 0,
    *,
    huge_pages: int = 16,
    node: int | None = 0,
    backing: Backing = Backing.ANON,
) -> RamBlock:
    """Return a block of so many times 2 MiB; that of another number lies elsewhere."""
    return RamBlock(
        idstr=f"ram{number}",
        hva=Hva(BASE + number * _APART),
        size_bytes=huge_pages * HUGE_BYTES,
        page_bytes=HUGE_BYTES if backing is Backing.HUGETLBFS else PAGE_BYTES,
        backing=backing,
        shared=backing is not Backing.ANON,
        numa_node=node,
        memdev=f"ram{number}",
    )


def layout_of(*blocks: RamBlock) -> Layout:
    """Lay blocks one after the other, from gpa 0 on."""
    segments = []
    gpa = 0
    for block in blocks:
        segments.append(Segment(Gpa(gpa), block.size_bytes, block, 0))
        gpa += block.size_bytes
    return Layout(tuple(segments), source="made up")


def pages_of(block: RamBlock, first: int, count: int = 1) -> HvaRange:
    """Return pages of 4 KiB of a block."""
    return HvaRange.of(block.hva + first * PAGE_BYTES, count * PAGE_BYTES)


def huge_page_of(block: RamBlock, number: int, count: int = 1) -> HvaRange:
    """Return whole blocks of 2 MiB of a block."""
    return HvaRange.of(block.hva + number * HUGE_BYTES, count * HUGE_BYTES)
