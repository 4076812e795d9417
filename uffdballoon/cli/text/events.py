# SPDX-License-Identifier: GPL-2.0-or-later
"""An event as a line for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.cli.text.times import written_time
from uffdballoon.model.records.events import Notice
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.model.records.events import Event


def event_line(event: Event) -> str:
    """Return an event as one line."""
    if isinstance(event, Notice):
        why = f": {event.why}" if event.why else ""
        size = "" if event.size is None else f" {format_size(event.size)}"
        return f"{written_time(event.time_ns)} {event.kind.value}{size}{why}"
    gpa = "?" if event.gpa is None else f"{event.gpa:#x}"
    who = f"tid {event.tid}" if event.vcpu is None else f"vcpu {event.vcpu}"
    return (
        f"{written_time(event.time_ns)} {event.kind.value} {event.access.value} gpa {gpa} "
        f"size {event.size} {who} -> {event.action.value}"
    )
