# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations for which QEMU registers the guest's memory with a userfaultfd of its own.

A background snapshot does, and the destination of a postcopy migration. QEMU tells of migrations
where its capability `events` is set, which is set for as long as we are here.

QEMU refuses to set `background-snapshot` while the memory is registered by somebody else
(migration/ram.c, ram_write_tracking_compatible()). So what was told before anything was trapped
stays true for as long as something is, unless it is unset.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu.asking import understanding

if TYPE_CHECKING:
    from uffdballoon.model.job import Job
    from uffdballoon.vmm.qemu.asking import Answers
    from uffdballoon.vmm.qemu.latest import LatestAnswers

ENDS = frozenset({"completed", "failed", "cancelled"})
_NOT_UNDER_WAY = ENDS | {"none"}
_QUERY = "query-migrate-capabilities"


class Migrations:
    """What the next migration is, and what was told of those that were.

    ``needs_memory``: whether it has a userfaultfd of its own; ``is_under_way``: whether there is
    one now, as asking() learned last.
    """

    def __init__(self, latest: LatestAnswers | None) -> None:
        """Have QEMU tell of them, as far as it can."""
        self._latest = latest
        self._sets_events = False
        self._told: list[str] = []
        self.needs_memory = self.is_under_way = False
        if latest is None:
            return
        with contextlib.suppress(QmpError):
            if capabilities(latest).get("events") is False:
                _set_events(latest, on=True)
                self._sets_events = True
        with contextlib.suppress(QmpError):
            self.needs_memory = needs_memory(latest)

    def note(self, status: str) -> None:
        """Note what an event told."""
        self._told.append(status)

    def take(self) -> list[str]:
        """Take what was told since the last time, in order."""
        told, self._told = self._told, []
        return told

    def asking(self) -> Job[None]:
        """Learn whether the next one needs the memory, a turn at a time."""
        latest = self._latest
        if latest is None or not (yield from latest.ahead(lambda: self._ask(latest))):
            return
        with contextlib.suppress(QmpError), latest.told():
            self._ask(latest)

    def _ask(self, monitor: Answers) -> None:
        for learn in (self._learn_need, self._learn_state):
            with contextlib.suppress(QmpError):  # as long as it is not answered
                learn(monitor)

    def _learn_need(self, monitor: Answers) -> None:
        self.needs_memory = needs_memory(monitor)

    def _learn_state(self, monitor: Answers) -> None:
        self.is_under_way = is_under_way(monitor)

    def close(self) -> None:
        """Leave QEMU as it was."""
        if self._latest is not None and self._sets_events:
            with contextlib.suppress(QmpError):  # refused while one is under way
                _set_events(self._latest, on=False)


def needs_memory(monitor: Answers) -> bool:
    """Return whether the next migration has a userfaultfd of its own; raise QmpError."""
    able = capabilities(monitor)
    if able.get("background-snapshot", False):
        return True
    if not able.get("postcopy-ram", False):
        return False
    with understanding("query-status"):
        return str(monitor.execute("query-status")["status"]) == "inmigrate"


def is_under_way(monitor: Answers) -> bool:
    """Return whether a migration has begun and not ended; raise QmpError."""
    with understanding("query-migrate"):
        return str(monitor.execute("query-migrate").get("status", "none")) not in _NOT_UNDER_WAY


def capabilities(monitor: Answers) -> dict[str, bool]:
    """Return which capabilities of migrations are set, by name; raise QmpError."""
    with understanding(_QUERY):
        told = monitor.execute(_QUERY)
        return {str(each["capability"]): bool(each["state"]) for each in told}


def _set_events(monitor: Answers, *, on: bool) -> None:
    monitor.execute(
        "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": on}]}
    )
