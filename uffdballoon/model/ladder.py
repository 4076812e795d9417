# SPDX-License-Identifier: GPL-2.0-or-later
"""The rungs of a policy ladder."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.durations import format_duration

if TYPE_CHECKING:
    from typing import Self


class RungKind(enum.Enum):
    """What may be done about a violation, by the word in a ladder."""

    OBSERVE = "observe"
    ZERO_READ = "zero-read"
    THROTTLE = "throttle"
    FREEZE = "freeze"
    PAUSE = "pause"
    POISON = "poison"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung. ``hold_ns`` is freeze's; ``pages_per_s`` and ``burst_pages`` are throttle's.

    Pages are of 4 KiB, whatever the granule: a huge page counts as 512.
    """

    kind: RungKind
    hold_ns: int | None = None
    pages_per_s: int = 0
    burst_pages: int = 0

    @property
    def is_final(self) -> bool:
        """Whether it answers every touch, so that no rung can come after it."""
        if self.kind is RungKind.FREEZE:
            return self.hold_ns is None
        return self.kind not in (RungKind.ZERO_READ, RungKind.THROTTLE)

    @property
    def may_be_last(self) -> bool:
        """Whether no touch gets past it when nothing comes after it; throttle then waits."""
        return self.is_final or self.kind is RungKind.THROTTLE

    @classmethod
    def throttle(cls, bytes_per_s: int, burst_bytes: int) -> Self:
        return cls(
            RungKind.THROTTLE,
            pages_per_s=bytes_per_s // PAGE_BYTES,
            burst_pages=burst_bytes // PAGE_BYTES,
        )

    def __str__(self) -> str:
        if self.kind is RungKind.THROTTLE:
            return f"throttle={self.pages_per_s}/s:{self.burst_pages}"
        if self.hold_ns is not None:
            return f"freeze={format_duration(self.hold_ns)}"
        return str(self.kind.value)
