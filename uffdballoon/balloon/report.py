# SPDX-License-Identifier: GPL-2.0-or-later
"""What a zap did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ZapReport:
    """Bytes handed back, and how long each stop of a thread of the target took."""

    zapped_bytes: int
    stops_ns: tuple[int, ...] = ()

    def __add__(self, other: ZapReport) -> ZapReport:
        return ZapReport(self.zapped_bytes + other.zapped_bytes, self.stops_ns + other.stops_ns)
