# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest's balloon driver tells of the guest's memory, while somebody wants to know."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError
from uffdballoon.model.records.balloon import GuestMemory
from uffdballoon.vmm.qemu.asking import understanding

if TYPE_CHECKING:
    from uffdballoon.vmm.qemu.asking import Answers

_INTERVAL = "guest-stats-polling-interval"
_UNKNOWN = (1 << 64) - 1
_LATEST_S = 1 << 40  # of time.time() that make sense
_SHOWN_PERIOD_S = 7
"""Nobody else takes this one: where it is found, a manager that was killed has left it."""
_WANTED_FOR_S = 60.0


def read_statistics(monitor: Answers, path: str) -> tuple[dict[str, int], int]:
    """Return what was told last, and when by time.time(); nothing and 0 when nothing was.

    Virtio 1.2, 5.5.6.4: bytes, but for what counts events (``swap-in`` is bytes,
    ``major-faults`` a count). Nothing is told unless the device polls its driver.
    """
    try:
        with understanding("guest-stats"):
            told = monitor.execute("qom-get", {"path": path, "property": "guest-stats"})
            values = {
                str(name).removeprefix("stat-"): int(value)
                for name, value in told["stats"].items()
                if 0 <= int(value) < _UNKNOWN
            }
            at_s = int(told.get("last-update", 0))
            return values, at_s if 0 < at_s < _LATEST_S else 0
    except QmpError:
        return {}, 0


class GuestStatistics:
    """Has the device poll its driver for those who want to know, and for nobody else.

    The driver answers QEMU, which keeps what it said and sends no event: it wakes
    the guest once a period, and the manager never. A period that another client
    has set stays, and is set again when nobody wants to know any more.
    """

    def __init__(self, monitor: Answers, path: str) -> None:
        """Take the device at a QOM path; ask nothing yet."""
        self._monitor = monitor
        self._path = path
        self._before_s: int | None = None
        self._set_s = 0
        self._periods_s: dict[str, int] = {}
        self._until = 0.0

    def want(self, who: str, period_s: int) -> None:
        """Have the driver tell at least so often, until ``who`` had enough()."""
        self._periods_s[who] = period_s
        self._apply()

    def enough(self, who: str) -> None:
        """Leave the driver alone as far as ``who`` is concerned."""
        if self._periods_s.pop(who, None) is not None:
            self._apply()

    def read(self) -> dict[str, int]:
        """Return what was told last; empty when nothing was."""
        return read_statistics(self._monitor, self._path)[0]

    def show(self) -> GuestMemory:
        """Return what was told, for ``status``.

        The device polls for a minute from now on: the first who asks may come too early.
        """
        self._until = time.monotonic() + _WANTED_FOR_S
        self.want("show", _SHOWN_PERIOD_S)
        values, at_s = read_statistics(self._monitor, self._path)
        age_s = max(0.0, round(time.time() - at_s, 1)) if values and at_s else None
        return GuestMemory(age_s=age_s, values=values)

    def due_s(self) -> float | None:
        """Stop the polling that nobody asked for again; return the seconds until then."""
        if "show" not in self._periods_s:
            return None
        left_s = self._until - time.monotonic()
        if left_s > 0:
            return left_s
        self.enough("show")
        return None

    def close(self) -> None:
        """Have the device poll as it did before."""
        if self._periods_s:
            self._periods_s.clear()
            self._apply()

    def _apply(self) -> None:
        # A device whose driver does not know them refuses; then there are none.
        with contextlib.suppress(QmpError), understanding(_INTERVAL):
            where: dict[str, object] = {"path": self._path, "property": _INTERVAL}
            if self._before_s is None:
                self._set_s = int(self._monitor.execute("qom-get", where))
                self._before_s = 0 if self._set_s == _SHOWN_PERIOD_S else self._set_s
            periods = [*self._periods_s.values(), *filter(None, [self._before_s])]
            wanted_s = min(periods, default=0)
            if wanted_s != self._set_s:
                self._set_s = wanted_s  # before: what is not answered in time is done all the same
                self._monitor.execute("qom-set", {**where, "value": wanted_s})
