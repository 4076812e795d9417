# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM blocks of the target and the gpa-to-hva map they make up."""

from __future__ import annotations

import bisect
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uffdballoon.errors import RangeError
from uffdballoon.model.addresses import Gpa, GpaRange, Hva, HvaRange

if TYPE_CHECKING:
    from collections.abc import Iterable


class Backing(enum.Enum):
    """What stands behind a RAM block on the host.

    SHMEM is memory of the kernel's own that no file system lists: shared anonymous memory
    (memory-backend-ram,share=on) and System V's.
    """

    ANON = "anon"
    SHMEM = "shmem"
    MEMFD = "memfd"
    TMPFS = "tmpfs"
    HUGETLBFS = "hugetlbfs"


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One contiguous RAM allocation of QEMU (``RAMBlock`` in its source).

    ``file_start`` is the hva at which the first byte of its file is, or would be; 0 for
    anonymous memory.
    """

    idstr: str
    hva: Hva
    size_bytes: int
    page_bytes: int
    backing: Backing
    shared: bool
    numa_node: int | None = None
    memdev: str | None = None
    file_start: int = 0

    @property
    def hva_range(self) -> HvaRange:
        return HvaRange.of(self.hva, self.size_bytes)


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A stretch of a RAM block at one place of the guest's physical memory.

    The block of a guest with more than 3 GiB shows up as two: below and above
    the PCI hole.
    """

    gpa: Gpa
    size_bytes: int
    block: RamBlock = field(compare=False)
    block_offset_bytes: int = field(compare=False)

    @property
    def hva(self) -> Hva:
        return Hva(self.block.hva + self.block_offset_bytes)

    @property
    def gpa_range(self) -> GpaRange:
        return GpaRange.of(self.gpa, self.size_bytes)

    @property
    def hva_range(self) -> HvaRange:
        return HvaRange.of(self.hva, self.size_bytes)


@dataclass(frozen=True)
class Layout:
    """The gpa-to-hva map of all guest RAM.

    ``unknown`` says, in words for a person, what the source of the layout
    could not tell.
    """

    segments: tuple[Segment, ...]
    source: str
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ordered = sorted(self.segments)
        if tuple(ordered) != self.segments:
            object.__setattr__(self, "segments", tuple(ordered))

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Every RAM block once, in order of its hva."""
        return tuple(sorted({s.block for s in self.segments}, key=lambda b: b.hva))

    @property
    def allocated_bytes(self) -> int:
        """The size of all RAM blocks, as QEMU counts (get_current_ram_size() in its source).

        More than ram_bytes by what firmware shows its ROMs over.
        """
        return sum(block.size_bytes for block in self.blocks)

    @property
    def ram_bytes(self) -> int:
        return sum(s.size_bytes for s in self.segments)

    def segment_at(self, gpa: Gpa) -> Segment:
        """Find the segment that holds ``gpa``; raise RangeError when none does."""
        index = bisect.bisect_right(self.segments, gpa, key=lambda s: s.gpa) - 1
        if index >= 0 and gpa < self.segments[index].gpa_range.end:
            return self.segments[index]
        raise RangeError(
            f"gpa {gpa:#x} is not guest RAM",
            why=f"the guest's RAM is {self.extent}",
            hint="`uffdballoon inspect PID` lists it",
        )

    def to_hva(self, span: GpaRange) -> tuple[HvaRange, RamBlock]:
        """Translate a range that lies in one segment.

        Raises RangeError when it leaves RAM or crosses a hole.
        """
        segment = self.segment_at(span.start)
        if span.end > segment.gpa_range.end:
            raise RangeError(
                f"{span} is not all guest RAM, or crosses a hole",
                why=f"the stretch of RAM it starts in ends at {segment.gpa_range.end:#x}",
                hint=f"give one range for each stretch: {self.extent}",
            )
        return HvaRange.of(segment.hva + span.start - segment.gpa, span.size_bytes), segment.block

    def to_gpa(self, hva: Hva) -> Gpa | None:
        """Translate back; None for an address that is not guest RAM."""
        for segment in self.segments:
            if segment.hva <= hva < segment.hva_range.end:
                return Gpa(segment.gpa + hva - segment.hva)
        return None

    def to_gpa_range(self, span: HvaRange) -> GpaRange:
        """Translate a range back that lies in one segment."""
        gpa = self.to_gpa(span.start)
        assert gpa is not None
        return GpaRange.of(gpa, span.size_bytes)

    @property
    def extent(self) -> str:
        """Where its stretches lie, for a person."""
        return ", ".join(f"{s.gpa_range.start:#x}-{s.gpa_range.end:#x}" for s in self.segments)


def merge_hva_ranges(ranges: Iterable[HvaRange]) -> list[HvaRange]:
    """Join ranges that touch or overlap; the result is sorted and disjoint."""
    merged: list[HvaRange] = []
    for item in sorted(ranges):
        if merged and item.start <= merged[-1].end:
            merged[-1] = HvaRange(merged[-1].start, max(merged[-1].end, item.end))
        else:
            merged.append(item)
    return merged
