# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens in a second: the difference of two statuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_COUNTERS = {
    "violations": ("touches", "violations"),
    "granted": ("touches", "granted"),
    "ordinary": ("touches", "ordinary"),
    "inflated_pages": ("inflated_pages_total",),
    "deflated_pages": ("deflated_pages_total",),
}


@dataclass(frozen=True, slots=True)
class Rates:
    """Each counter's change a second."""

    violations: float
    granted: float
    ordinary: float
    inflated_pages: float
    deflated_pages: float

    @classmethod
    def between(cls, before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> Rates:
        """Compare two statuses of the same manager."""
        changes = (_read(now, path) - _read(before, path) for path in _COUNTERS.values())
        return cls(*(change / seconds for change in changes))


def _read(status: Mapping[str, Any], path: tuple[str, ...]) -> int:
    value: Any = status
    for key in path:
        value = value[key]
    return int(value)
