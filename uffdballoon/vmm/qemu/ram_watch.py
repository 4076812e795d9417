# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM that is plugged in or out while somebody is attached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError
from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.sizes import format_size
from uffdballoon.vmm.qemu.asking import sparse_bytes, understanding

if TYPE_CHECKING:
    from uffdballoon.model.records.events import Notice
    from uffdballoon.vmm.qemu.asking import Answers


class RamWatch:
    """Compares how much RAM there is with how much there was at first.

    Enforced is what was found at the attach. RAM that came later is served by the
    kernel as if nobody was there, and what is left goes on being enforced.
    """

    def __init__(self, monitor: Answers | None) -> None:
        """Look for the first time; without a monitor nothing is ever seen."""
        self._monitor = monitor
        self._first_bytes = self._ask()
        self._first_sparse_bytes = self._ask_sparse()
        self._told_bytes = 0
        self._news: list[Notice] = []

    def look(self) -> int | None:
        """Return how many bytes there are more than at first; None when nobody can say."""
        now_bytes = self._ask()
        if now_bytes is None or self._first_bytes is None:
            return None
        change = now_bytes - self._first_bytes
        if change != self._told_bytes:
            self._news.append(_news_of(change, change - self._told_bytes))
            self._told_bytes = change
        return change

    def look_at_counted(self) -> int | None:
        """Return the same without what virtio-mem plugs, which the balloon's `actual` leaves out.

        (hw/virtio/virtio-balloon.c, get_current_ram_size())
        """
        change, sparse_bytes = self.look(), self._ask_sparse()
        if change is None or sparse_bytes is None or self._first_sparse_bytes is None:
            return change
        return change - (sparse_bytes - self._first_sparse_bytes)

    def take_news(self) -> list[Notice]:
        """Take the event lines about what look() saw, each once."""
        news, self._news = self._news, []
        return news

    def _ask(self) -> int | None:
        return None if self._monitor is None else ram_bytes(self._monitor)

    def _ask_sparse(self) -> int | None:
        if self._monitor is None:
            return None
        try:
            return sparse_bytes(self._monitor)
        except QmpError:
            return None


def ram_bytes(monitor: Answers) -> int | None:
    """Return how much RAM there is, with what was plugged in; None when nobody can say."""
    try:
        with understanding("query-memory-size-summary"):
            told = monitor.execute("query-memory-size-summary")
            return int(told["base-memory"]) + int(told.get("plugged-memory", 0))
    except QmpError:
        return None


def _news_of(change_bytes: int, step_bytes: int) -> Notice:
    came = f"{format_size(abs(step_bytes))} of RAM {'came' if step_bytes > 0 else 'went'}"
    if change_bytes > 0:
        new = format_size(change_bytes)
        why = f"{came}: {new} are not enforced until you detach and attach again"
    elif change_bytes < 0:
        why = f"{came}: detach and attach again to have it counted no more"
    else:
        why = f"{came}: the guest has as much as when it was attached to"
    return notice(EventKind.MEMORY_CHANGED, why, ram_change_bytes=change_bytes)
