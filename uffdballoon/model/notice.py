# SPDX-License-Identifier: GPL-2.0-or-later
"""Event lines that tell of something else than a touch."""

from __future__ import annotations

import time
from typing import Any

_OF_TOUCHES = ("gpa", "size", "vcpu", "tid", "access", "verdict", "action")


def notice(kind: str, why: str = "", **more: object) -> dict[str, Any]:
    """Return an event line with the keys of every other, None where they say nothing."""
    line: dict[str, Any] = {
        "time_ns": time.time_ns(),
        "kind": kind,
        **dict.fromkeys(_OF_TOUCHES),
        **more,
    }
    return {**line, "why": why} if why else line
