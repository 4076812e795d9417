# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU tells by itself, as event lines and as what has to be done about it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind
from uffdballoon.vmm.base import Heard
from uffdballoon.vmm.qemu.asking import understanding

if TYPE_CHECKING:
    from uffdballoon.model.records.events import Notice

_KINDS = {
    "RESET": EventKind.RESET,
    "SHUTDOWN": EventKind.SHUTDOWN,
    "GUEST_PANICKED": EventKind.GUEST_PANICKED,
    "GUEST_CRASHLOADED": EventKind.GUEST_PANICKED,
    "SUSPEND": EventKind.SUSPENDED,
    "SUSPEND_DISK": EventKind.SUSPENDED,
    "WAKEUP": EventKind.WOKEN,
    "STOP": EventKind.STOPPED,
    "RESUME": EventKind.RESUMED,
    "BALLOON_CHANGE": EventKind.BALLOON_CHANGE,
    "MIGRATION": EventKind.MIGRATION,
}
_WHY = {"GUEST_CRASHLOADED": "its crash kernel takes over", "SUSPEND_DISK": "to its disk"}
# QEMU tells of no DIMM that is plugged in, only of what the guest answers to it: a guest that
# does not answer is found out by status().
_LAYOUT_EVENTS = {"ACPI_DEVICE_OST", "DEVICE_DELETED", "MEMORY_DEVICE_SIZE_CHANGE"}


def read_event(event: dict[str, Any]) -> Heard:
    """Read what QEMU told; raise QmpError when it makes no sense."""
    with understanding("what happens (an event)"):
        kind = str(event["event"])
        return Heard(
            _notices_of(kind, event.get("data", {})),
            _monotonic_ns(event["timestamp"]) if kind == "RESET" else None,
            kind == "BALLOON_CHANGE",
            kind in _LAYOUT_EVENTS,
            str(event["data"]["status"]) if kind == "MIGRATION" else None,
        )


def _notices_of(kind: str, data: dict[str, Any]) -> list[Notice]:
    if kind == "BALLOON_CHANGE":
        return [notice(_KINDS[kind], actual_bytes=int(data["actual"]))]
    if kind == "MIGRATION":
        return [notice(_KINDS[kind], str(data["status"]))]
    if kind == "GUEST_PANICKED":
        return [notice(_KINDS[kind], f"QEMU does what it is set to: {data['action']}")]
    if kind in _KINDS:
        return [notice(_KINDS[kind], _WHY.get(kind, ""))]
    return []


def _monotonic_ns(timestamp: dict[str, int]) -> int:
    """Convert the time of a QMP event, which is CLOCK_REALTIME, to CLOCK_MONOTONIC.

    A time that cannot be is now: QEMU gives -1 when it does not know.
    """
    real_ns = int(timestamp["seconds"]) * 1_000_000_000 + int(timestamp["microseconds"]) * 1000
    now_ns = time.monotonic_ns()
    at_ns = now_ns - (time.time_ns() - real_ns)
    return at_ns if 0 < at_ns <= now_ns else now_ns
