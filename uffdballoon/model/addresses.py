# SPDX-License-Identifier: GPL-2.0-or-later
"""Address kinds that must never be mixed up, and half-open ranges of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Iterator

Gpa = NewType("Gpa", int)
"""Guest-physical address, in bytes."""
Hva = NewType("Hva", int)
"""Host-virtual address in the target, in bytes."""
Gfn = NewType("Gfn", int)
"""Guest frame number: a Gpa in units of 4 KiB."""

PAGE_BYTES = 4096
"""The balloon's unit whatever the host's page size (virtio 1.2, 5.5.6)."""
HUGE_BYTES = 2 << 20


def round_down(value: int, unit: int) -> int:
    """Round down to a multiple of ``unit`` (a power of two)."""
    return value & ~(unit - 1)


def round_up(value: int, unit: int) -> int:
    """Round up to a multiple of ``unit`` (a power of two)."""
    return (value + unit - 1) & ~(unit - 1)


@dataclass(frozen=True, slots=True, order=True)
class GpaRange:
    """A half-open stretch ``[start, end)`` of guest-physical addresses."""

    start: Gpa
    end: Gpa

    @property
    def size_bytes(self) -> int:
        return self.end - self.start

    @classmethod
    def of(cls, start: int, size_bytes: int) -> GpaRange:
        return cls(Gpa(start), Gpa(start + size_bytes))

    def __str__(self) -> str:
        return f"gpa {self.start:#x}-{self.end:#x}"


@dataclass(frozen=True, slots=True, order=True)
class HvaRange:
    """A half-open stretch ``[start, end)`` of host-virtual addresses."""

    start: Hva
    end: Hva

    @property
    def size_bytes(self) -> int:
        return self.end - self.start

    @classmethod
    def of(cls, start: int, size_bytes: int) -> HvaRange:
        return cls(Hva(start), Hva(start + size_bytes))

    def pieces(self, size_bytes: int) -> Iterator[HvaRange]:
        """Yield it in pieces of at most ``size_bytes``."""
        for start in range(self.start, self.end, size_bytes):
            yield HvaRange.of(start, min(size_bytes, self.end - start))

    def overlaps(self, other: HvaRange) -> bool:
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"hva {self.start:#x}-{self.end:#x}"
