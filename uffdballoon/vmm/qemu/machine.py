# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's machine as its monitor tells of it; most of it goes on without one."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError
from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind
from uffdballoon.vmm.base import Heard, Vmm
from uffdballoon.vmm.qemu.asking import collect, vcpu_tids
from uffdballoon.vmm.qemu.balloon import (
    BalloonTarget,
    actual_bytes,
    find_balloon,
    refuse_as_size,
    require_balloon,
    require_target,
    stop_where_it_is,
)
from uffdballoon.vmm.qemu.connecting import connect
from uffdballoon.vmm.qemu.events import read_event
from uffdballoon.vmm.qemu.latest import LatestAnswers
from uffdballoon.vmm.qemu.libvirt_domain import delay_ns
from uffdballoon.vmm.qemu.migrating import Migrations
from uffdballoon.vmm.qemu.pausing import stopping_vm
from uffdballoon.vmm.qemu.qmp import DEFAULT_TIMEOUT_S
from uffdballoon.vmm.qemu.ram_watch import RamWatch
from uffdballoon.vmm.qemu.statistics import GuestStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.core.keeper import Held
    from uffdballoon.core.relay import Lookout
    from uffdballoon.model.job import Job
    from uffdballoon.model.records.balloon import DriverProgress, GuestMemory
    from uffdballoon.model.records.events import Notice
    from uffdballoon.vmm.qemu.facts import MonitorFacts
    from uffdballoon.vmm.qemu.monitor import Monitor

RECONNECT_S = 5.0
_LAST_WORD_S = 1.0
_STEP_S = 0.1


class Machine(Vmm):
    """A monitor and the balloon device behind it, or neither; a context manager.

    Without a monitor every question has an answer that says so: None, or
    UnsupportedError.
    """

    def __init__(
        self,
        monitor: Monitor | None,
        *,
        lookout: Lookout | None = None,
        missed: bool = False,
    ) -> None:
        """Look for the balloon device; raise QmpError.

        ``lookout`` sees resets where there is no monitor; ``missed``: nobody has seen them
        since the manager before us ended.
        """
        self.monitor = monitor
        self.missed = missed
        self._lookout = lookout
        self.device = find_balloon(monitor) if monitor is not None else None
        self._statistics: GuestStatistics | None = None
        self._latest = LatestAnswers(monitor) if monitor is not None else None
        if self._latest is not None and self.device is not None:
            self._statistics = GuestStatistics(self._latest, self.device.path)
        self.migrations = Migrations(self._latest)
        self._target: BalloonTarget | None = None
        self._ram = RamWatch(self._latest)
        self._ram_moved = False
        self._lost = False
        self._reconnect_at = 0.0

    @classmethod
    def connect(
        cls,
        path: str | None,
        *,
        pid: int,
        needed: bool,
        held: Held | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Machine:
        """Connect as `connecting` does, or go on without; look for the balloon device."""
        monitor, lookout, missed = connect(
            path, pid=pid, needed=needed, held=held, progress=progress
        )
        try:
            return cls(monitor, lookout=lookout, missed=missed)
        except BaseException:
            if monitor is not None:
                monitor.close()
            raise

    def close(self) -> None:
        if self._latest is not None and not self._lost:
            with self._latest.patient(_LAST_WORD_S):
                self.migrations.close()
                if self._statistics is not None:
                    self._statistics.close()
        if self.monitor is not None:
            self.monitor.close()
        if self._lookout is not None:
            self._lookout.close()

    @property
    def reset_delay_ns(self) -> int:
        """How late a reset may be told of: 0 where QEMU tells us itself."""
        return 0 if self.relay is None else delay_ns(self.relay.monitor_fd)

    def note_resets_in(self, memory: int) -> None:
        """Note resets of the guest in the memfd of a ledger, for the next manager."""
        if self.monitor is not None and memory >= 0:
            self.monitor.note_resets_in(memory)

    def share(self) -> int | None:
        """Return the connection's fd for somebody who holds it beside us; None without one.

        From here on its end is not ours: it is theirs, too.
        """
        if self.relay is None:
            return None
        self.relay.keep(keeps=True)
        return self.relay.monitor_fd

    def facts(self) -> MonitorFacts | None:
        """Ask all that finding the guest's RAM needs; raise QmpError."""
        return collect(self.monitor) if self.monitor is not None else None

    @property
    def has_device(self) -> bool | None:
        """Whether there is a balloon device; None when nobody can be asked."""
        return None if self.monitor is None else self.device is not None

    @property
    def reports_free_pages(self) -> bool | None:
        return self.device.reports_free_pages if self.device else None

    @property
    def is_lost(self) -> bool:
        """Whether QEMU ended the connection, and has not taken us back yet."""
        return self._lost

    @property
    def relay(self) -> Lookout | None:
        """What sees the monitor's events before we do; another one after a reconnect()."""
        return self.monitor.relay if self.monitor is not None else self._lookout

    def fileno(self) -> int | None:
        """Return an fd that is readable while the monitor has something to tell."""
        return self.monitor.fileno() if self.monitor is not None else None

    def hear(self) -> Heard:
        """Take what the monitor told since the last time."""
        heard = Heard([], None, balloon_moved=False)
        if self.monitor is None:
            return heard
        for event in self.monitor.take_events():
            try:
                told = read_event(event)
            except QmpError as error:
                heard.notices.append(notice(EventKind.MONITOR_GARBLED, str(error)))
                continue
            if told.migration is not None:
                self.migrations.note(told.migration)
            heard = Heard(
                heard.notices + told.notices,
                heard.reset_ns if told.reset_ns is None else told.reset_ns,
                heard.balloon_moved or told.balloon_moved,
                heard.ram_moved or told.ram_moved,
            )
        if heard.ram_moved or self._ram_moved:
            self._ram.look()
            self._ram_moved = self._latest is not None and self._latest.are_late()
        heard.notices.extend(self._ram.take_news())
        if self.monitor.is_lost and not self._lost:
            self._lost = True
            why = f"QEMU ended the connection; trying again every {RECONNECT_S:g} s"
            heard.notices.append(notice(EventKind.MONITOR_LOST, why))
        return heard

    def reconnect(self) -> list[Notice]:
        """Try to be connected again, now and then; tell when it worked."""
        if not self._lost or self.monitor is None or time.monotonic() < self._reconnect_at:
            return []
        self._reconnect_at = time.monotonic() + RECONNECT_S
        if not self.monitor.reconnect(timeout_s=1.0):
            return []
        self._lost = False
        return [notice(EventKind.MONITOR_BACK, "a reset meanwhile would not have been seen")]

    def asking_vcpus(self) -> Job[dict[int, int] | None]:
        """Map thread ids of vCPUs to their numbers; None when nobody can be asked now."""
        latest = self._latest
        if latest is None or self._lost or not (yield from latest.ahead(lambda: vcpu_tids(latest))):
            return None
        try:
            with latest.told():
                return vcpu_tids(latest)
        except QmpError:
            return None

    def asking(self) -> Job[None]:
        """Have QEMU answer what the questions below are about, for answered()."""
        if self._latest is not None and not self._lost:
            yield from self._latest.ahead(self._ask_all)

    def answered(self) -> contextlib.AbstractContextManager[None]:
        """Answer questions in the context by what QEMU said last, and ask it nothing."""
        return contextlib.nullcontext() if self._latest is None else self._latest.told()

    def _ask_all(self) -> None:
        self.actual_bytes()
        self.counted_change_bytes()
        self.guest_statistics()

    def actual_bytes(self) -> int | None:
        """Return what the guest has left by its own account; None when nobody can say."""
        if self._latest is None or self.device is None or self._lost:
            return None
        return actual_bytes(self._latest)

    def ram_change_bytes(self) -> int | None:
        """Return how much RAM came since the attach, for hear() to tell once; below zero: went."""
        return None if self._lost else self._ram.look()

    def counted_change_bytes(self) -> int | None:
        """Return how much of it the balloon's `actual` counts; None when nobody can say."""
        return None if self._lost else self._ram.look_at_counted()

    def guest_statistics(self) -> GuestMemory | None:
        """Return what the driver tells of the guest's memory; None when nobody can be asked."""
        return None if self._lost or self._statistics is None else self._statistics.show()

    def due_s(self) -> float | None:
        """Do what is due, and return the seconds until more is."""
        return None if self._lost or self._statistics is None else self._statistics.due_s()

    def ask_balloon(
        self, target_bytes: int, ram_bytes: int, step_bytes: int | None = None
    ) -> DriverProgress:
        """Ask the guest's driver to leave it that much memory; return balloon_progress().

        Raises UnsupportedError without a monitor or device, RangeError for more
        than its RAM or nothing at all, QmpError when QEMU refuses.
        """
        device = require_balloon(self.monitor, self.device)
        assert self._latest is not None
        assert self._statistics is not None
        refuse_as_size(target_bytes, ram_bytes)
        with self._latest.patient(DEFAULT_TIMEOUT_S):
            self._target = BalloonTarget(
                self._latest, device, self._statistics, target_bytes, step_bytes=step_bytes
            )
        return self._target.progress()

    def pausing(self, let_go: Callable[[], None]) -> Job[None]:
        """Stop the VM; raise QmpError when QEMU does not, and the guest goes on then."""
        assert self.monitor is not None
        return stopping_vm(self.monitor, let_go)

    def stop_balloon(self, why: str) -> int | None:
        """Have the balloon stay as it is; return what is left to the guest; None: as it was."""
        if self.monitor is None or self._lost:
            return None
        # Now: by an older answer it would go back.
        return stop_where_it_is(self.monitor, self._target, why)

    @property
    def is_stepping(self) -> bool:
        return self._target is not None and self._target.is_stepping

    def is_at_step(self) -> bool:
        if self._latest is None or self._lost or self._target is None:
            return False
        return self._target.is_stepping and self._latest.glance(self._target.is_at_step)

    def step_balloon(self, step_bytes: int) -> bool:
        if self._latest is None or self._target is None:
            return False
        with self._latest.patient(_STEP_S):
            return self._target.step(step_bytes)

    def balloon_progress(self) -> DriverProgress:
        """Return how far the guest has come to what it was asked for last."""
        return require_target(self._target).progress()
