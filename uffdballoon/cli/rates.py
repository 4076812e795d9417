# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens in a second: the difference of two statuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uffdballoon.model.records.status import Status


@dataclass(frozen=True, slots=True)
class Rates:
    """Each counter's change a second."""

    violations: float
    granted: float
    ordinary: float
    inflated_pages: float
    deflated_pages: float

    @classmethod
    def between(cls, before: Status, now: Status, seconds: float) -> Rates:
        """Compare two statuses of the same manager."""
        changes = (new - old for old, new in zip(_read(before), _read(now), strict=True))
        return cls(*(change / seconds for change in changes))


def _read(status: Status) -> tuple[int, int, int, int, int]:
    return (
        status.touches.violations,
        status.touches.granted,
        status.touches.ordinary,
        status.inflated_pages_total,
        status.deflated_pages_total,
    )
