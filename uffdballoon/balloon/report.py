# SPDX-License-Identifier: GPL-2.0-or-later
"""What a zap did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ZapReport:
    """Bytes handed back, and how long each stop of a thread of the target took.

    That thread is to run for ``rest_s`` before it is stopped again.
    """

    zapped_bytes: int
    stops_ns: tuple[int, ...] = ()
    rest_s: float = 0.0

    def __add__(self, later: ZapReport) -> ZapReport:
        return ZapReport(
            self.zapped_bytes + later.zapped_bytes, self.stops_ns + later.stops_ns, later.rest_s
        )
