# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells of the guest's inflates and deflates."""

from __future__ import annotations

import enum


class ObserverKind(enum.Enum):
    """In order of preference: `event` is exact, but QEMU waits for us at each page.

    ``trace`` tells inflates and deflates, ``event`` and ``scan`` inflates only,
    ``direct`` neither.
    """

    TRACE = "trace"
    SCAN = "scan"
    EVENT = "event"
    DIRECT = "direct"

    @property
    def tells_deflates(self) -> bool:
        return self is ObserverKind.TRACE

    @property
    def tells_reports(self) -> bool:
        """Whether what is reported free is told apart from what is inflated."""
        return self in (ObserverKind.TRACE, ObserverKind.EVENT)
