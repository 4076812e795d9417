# SPDX-License-Identifier: GPL-2.0-or-later
"""Which VM an event is of: where those of several come together, nothing else tells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from msgspec import UNSET

from uffdballoon.model.printable import printable
from uffdballoon.model.records.events import Notice, TouchEvent

if TYPE_CHECKING:
    from msgspec import UnsetType

E = TypeVar("E", bound=TouchEvent | Notice)


class Origin(NamedTuple):
    """A target: its process, and its name, empty without one."""

    pid: int
    name: str = ""

    @property
    def vm(self) -> str | UnsetType:
        """The name as an event has it."""
        return self.name or UNSET

    @property
    def shown(self) -> str:
        """Name it for a person."""
        return f"{printable(self.name)} ({self.pid})" if self.name else str(self.pid)

    def mark(self, event: E) -> E:
        """Say in an event whose it is, where it does not yet."""
        return event if event.pid is not UNSET else replace(event, pid=self.pid, vm=self.vm)
