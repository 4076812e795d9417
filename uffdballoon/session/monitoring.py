# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's monitor tells, and keeping the connection to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.part import Source, Tick
from uffdballoon.vmm.qemu.machine import RECONNECT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.records.events import Notice
    from uffdballoon.session.attachment import Attachment
    from uffdballoon.session.resets import Resets


class Monitoring:
    """The monitor as a part; nothing to do without one."""

    name = "monitor"

    def __init__(self, attached: Attachment, resets: Resets) -> None:
        self._machine = attached.machine
        self._loop = attached.enforcer.loop
        self._follower = attached.follower
        self._resets = resets
        self._untold: list[Notice] = []
        self._has_heard = False

    def sources(self) -> Sequence[Source]:
        fd = self._machine.fileno()
        return () if fd is None else (Source("monitor", fd, self._on_told),)

    def tick(self) -> Tick:
        """Connect again where QEMU hung up, and set back what was set of it."""
        if back := self._machine.reconnect():
            self._untold += back
            self._loop.watch_resets(self._machine.relay)
            self._has_heard = True
        waits = (RECONNECT_S if self._machine.is_lost else None, self._machine.due_s())
        told, self._untold = self._untold, []
        heard, self._has_heard = self._has_heard, False
        due_s = min((wait for wait in waits if wait is not None), default=None)
        return Tick(told, due_s, others_s=0.0 if heard else None)

    def hear(self) -> list[Notice]:
        """Take what the monitor told, and follow it: a reset empties the balloon."""
        heard = self._machine.hear()
        if self._machine.is_lost:
            self._loop.watch_resets(None)
        if heard.reset_ns is not None:
            self._resets.note(heard.reset_ns)
        heard.notices.extend(self._resets.catch_up())
        if heard.balloon_moved:
            self._follower.catch_up()
        return heard.notices

    def _on_told(self) -> bool:
        self._has_heard = True
        self._untold += self.hear()
        return False
