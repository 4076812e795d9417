# SPDX-License-Identifier: GPL-2.0-or-later
"""What `systemctl status` shows of an attach, said anew when its policy has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

if TYPE_CHECKING:
    from uffdballoon.core.service_manager import ServiceManager
    from uffdballoon.model.records.events import Event


class UnitStatus:
    """Tells the service manager of changes of the policy; an Output."""

    unwritten = 0

    def __init__(self, service: ServiceManager, pid: int) -> None:
        self._service = service
        self._pid = pid

    def write(self, event: Event) -> None:
        """Say what is in force from now on, if the event is that it changed."""
        after = getattr(event, "after", UNSET)
        if after is not UNSET:
            self._service.tell_attached(self._pid, after.policy)

    def flush(self) -> float | None:
        """Do nothing: nothing waits."""
        return None

    def close(self) -> None:
        """Do nothing: the service manager stays the caller's."""
