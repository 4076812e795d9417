# SPDX-License-Identifier: GPL-2.0-or-later
"""When the rest of a huge page is split, so that what was zapped out of it is free."""

from __future__ import annotations

import enum


class Reclaiming(enum.Enum):
    """``kernel``: once the host is short of memory, by its deferred split queue."""

    NOW = "now"
    KERNEL = "kernel"


DEFAULT_RATE_BYTES_PER_S = 4 << 30
"""Of memory whose huge pages are split; it takes half of a CPU where that was measured."""
