# SPDX-License-Identifier: GPL-2.0-or-later
"""The size that is zapped and judged at once."""

from __future__ import annotations

import enum

from uffdballoon.model.addresses import (
    HUGE_BYTES,
    PAGE_BYTES,
    Hva,
    HvaRange,
    round_down,
    round_up,
)


class Granule(enum.Enum):
    """4k pages, 2 MiB blocks of 4k pages, or hugetlbfs pages of 2 MiB."""

    SMALL = "4k"
    THP = "thp"
    HUGE2M = "huge2m"

    @property
    def size_bytes(self) -> int:
        return PAGE_BYTES if self is Granule.SMALL else HUGE_BYTES


def round_inward(
    span: HvaRange, granule: Granule, base: int = 0
) -> tuple[HvaRange | None, tuple[HvaRange, ...]]:
    """Shrink a range to whole granules; return it and what was left out.

    The whole is None when the range holds no whole granule. Anonymous huge pages are
    aligned in the host's address space, so it is the hva that counts; those of a file
    are aligned in the file, whose first byte is at ``base``.
    """
    base %= granule.size_bytes
    start = Hva(round_up(span.start - base, granule.size_bytes) + base)
    end = Hva(round_down(span.end - base, granule.size_bytes) + base)
    if start >= end:
        return None, (span,)
    pieces = (
        HvaRange.of(span.start, start - span.start),
        HvaRange.of(end, span.end - end),
    )
    return HvaRange.of(start, end - start), tuple(p for p in pieces if p.size_bytes)
