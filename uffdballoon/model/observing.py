# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells of the guest's inflates and deflates."""

from __future__ import annotations

import enum


class ObserverKind(enum.Enum):
    """In order of preference: `event` is exact, but QEMU waits for us at each page.

    ``trace`` and ``monitor`` tell inflates and deflates, ``event`` and ``scan`` inflates only,
    ``direct`` neither. ``trace`` costs the guest less than ``monitor``.
    """

    TRACE = "trace"
    MONITOR = "monitor"
    SCAN = "scan"
    EVENT = "event"
    DIRECT = "direct"

    @property
    def tells_deflates(self) -> bool:
        return self in (ObserverKind.TRACE, ObserverKind.MONITOR)

    @property
    def tells_reports(self) -> bool:
        """Whether what is reported free is told apart from what is inflated."""
        return self in (ObserverKind.TRACE, ObserverKind.EVENT)
