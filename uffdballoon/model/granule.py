# SPDX-License-Identifier: GPL-2.0-or-later
"""The size that is zapped and judged at once."""

from __future__ import annotations

import enum

from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES


class Granule(enum.Enum):
    """4k pages, 2 MiB blocks of 4k pages, or hugetlbfs pages of 2 MiB."""

    SMALL = "4k"
    THP = "thp"
    HUGE2M = "huge2m"

    @property
    def size_bytes(self) -> int:
        return PAGE_BYTES if self is Granule.SMALL else HUGE_BYTES
