# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's machine as its monitor tells of it; most of it goes on without one."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from uffdballoon.core.relay import Lookout
from uffdballoon.errors import MonitorBusyError, QmpError, RangeError, UsageError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.sizes import format_size
from uffdballoon.vmm.qemu.asking import collect, understanding, vcpu_tids
from uffdballoon.vmm.qemu.balloon import BalloonTarget, actual_bytes, find_balloon, require_balloon
from uffdballoon.vmm.qemu.monitor import Monitor
from uffdballoon.vmm.qemu.ram_watch import RamWatch
from uffdballoon.vmm.qemu.statistics import GuestStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.core.keeper import Held
    from uffdballoon.model.records.balloon import DriverProgress, GuestMemory
    from uffdballoon.model.records.events import Notice
    from uffdballoon.vmm.qemu.facts import MonitorFacts

RECONNECT_S = 5.0
_STEP_S = 2.0  # whoever touches the balloon waits meanwhile
_KINDS = {
    "RESET": EventKind.RESET,
    "SHUTDOWN": EventKind.SHUTDOWN,
    "STOP": EventKind.STOPPED,
    "RESUME": EventKind.RESUMED,
    "BALLOON_CHANGE": EventKind.BALLOON_CHANGE,
    "MIGRATION": EventKind.MIGRATION,
}
# QEMU tells of no DIMM that is plugged in, only of what the guest answers to it: a guest that
# does not answer is found out by status().
_LAYOUT_EVENTS = {"ACPI_DEVICE_OST", "DEVICE_DELETED", "MEMORY_DEVICE_SIZE_CHANGE"}


class Heard(NamedTuple):
    """What the monitor told: event lines, and what the session has to do about it.

    ``reset_ns`` is CLOCK_MONOTONIC; None when the guest was not reset.
    """

    notices: list[Notice]
    reset_ns: int | None
    balloon_moved: bool
    ram_moved: bool = False


class Machine:
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
        if monitor is not None and self.device is not None:
            self._statistics = GuestStatistics(monitor, self.device.path)
        self._target: BalloonTarget | None = None
        self._ram = RamWatch(monitor)
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
        """Connect to the monitor at ``path``; go on without where another client holds it.

        A connection that is ``held`` is gone on with, with or without a path, which must be of
        that process, too. Raises QmpError, and MonitorBusyError when it is ``needed``.
        """
        missed = held is not None and (held.monitor is not None or path is not None)
        if held is not None and held.monitor is not None:
            raw = socket.socket(fileno=held.monitor)
            kept = cls._take_over(raw, held.memory, path, pid, needed, progress)
            if kept is not None:
                return kept
        if path is None:
            return cls(None, missed=missed)
        try:
            monitor = Monitor.connect(path, pid=pid)
        except MonitorBusyError as busy:
            if needed:
                raise
            progress(
                f"going on without the monitor: {busy}. Resets of the guest are not seen, "
                "the balloon cannot be set, and RAM is found by what /proc shows"
            )
            return cls(None, missed=missed)
        return cls._over(monitor, missed=missed)

    @classmethod
    def _over(cls, monitor: Monitor, *, missed: bool) -> Machine:
        try:
            return cls(monitor, missed=missed)
        except BaseException:
            monitor.close()
            raise

    @classmethod
    def _take_over(
        cls,
        raw: socket.socket,
        memory: int,
        path: str | None,
        pid: int,
        needed: bool,  # noqa: FBT001 - connect()'s
        progress: Callable[[str], None],
    ) -> Machine | None:
        """Go on with the connection that is held; None when QEMU has ended it."""
        if _has_ended(raw):
            raw.close()
            return None
        spare = raw.dup()
        monitor = Monitor.take_over(raw, path, pid=pid, memory=memory, timeout_s=_STEP_S)
        if monitor is not None:
            spare.close()
            progress("connection to the monitor taken over")
            return cls._over(monitor, missed=False)
        if needed or _has_ended(spare):
            spare.close()
        if needed:
            raise MonitorBusyError(
                "the monitor does not answer",
                why="QEMU waits, for a touch of its balloon to be answered perhaps",
                hint="attach with a policy, and without a limit, that needs no monitor",
            )
        if spare.fileno() < 0:
            return None
        progress(
            "going on without the monitor: QEMU does not answer, as when it waits for a touch of "
            "its balloon. Resets of the guest are seen, but the balloon cannot be set"
        )
        return cls(None, lookout=Lookout(spare, memory))

    def close(self) -> None:
        if self._statistics is not None and not self._lost:
            self._statistics.close()
        if self.monitor is not None:
            self.monitor.close()
        if self._lookout is not None:
            self._lookout.close()

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
        return self.monitor.event_fileno() if self.monitor is not None else None

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
            heard = Heard(
                heard.notices + told.notices,
                heard.reset_ns if told.reset_ns is None else told.reset_ns,
                heard.balloon_moved or told.balloon_moved,
                heard.ram_moved or told.ram_moved,
            )
        if heard.ram_moved:
            self._ram.look()
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

    def vcpu_tids(self) -> dict[int, int] | None:
        """Map thread ids of vCPUs to their numbers; None when nobody can be asked now."""
        if self.monitor is None:
            return None
        try:
            return vcpu_tids(self.monitor)
        except QmpError:
            return None

    def actual_bytes(self) -> int | None:
        """Return what the guest has left by its own account; None when nobody can say."""
        if self.monitor is None or self.device is None or self._lost:
            return None
        return actual_bytes(self.monitor)

    def ram_change_bytes(self) -> int | None:
        """Return how much RAM came since the attach, below zero: went; None when nobody can say.

        hear() tells of it, once.
        """
        return None if self._lost else self._ram.look()

    def guest_statistics(self) -> GuestMemory | None:
        """Return what the driver tells of the guest's memory; None when nobody can be asked."""
        return None if self._lost or self._statistics is None else self._statistics.show()

    def due_s(self) -> float | None:
        """Do what is due, and return the seconds until more is."""
        return None if self._lost or self._statistics is None else self._statistics.due_s()

    def ask_balloon(self, target_bytes: int, ram_bytes: int) -> DriverProgress:
        """Ask the guest's driver to leave it that much memory; return balloon_progress().

        Raises UnsupportedError without a monitor or device, RangeError for more
        than its RAM or nothing at all, QmpError when QEMU refuses.
        """
        device = require_balloon(self.monitor, self.device)
        assert self.monitor is not None
        assert self._statistics is not None
        if not PAGE_BYTES <= target_bytes <= ram_bytes:
            raise RangeError(
                f"{format_size(target_bytes)} is no size for this guest",
                why=f"it has {format_size(ram_bytes)} of RAM",
                hint="give what the guest shall have left, at most its RAM",
            )
        self._target = BalloonTarget(self.monitor, device, self._statistics, target_bytes)
        return self._target.progress()

    def stop_balloon(self, why: str) -> int | None:
        """Have the guest's balloon stay as it is; return what is left to it, or None.

        None when it cannot be asked now: nothing was done.
        """
        actual = self.actual_bytes()
        if self.monitor is None or actual is None:
            return None
        try:
            self.monitor.execute("balloon", {"value": actual})
        except QmpError:
            return None
        if self._target is not None:
            self._target.stop(why)
        return actual

    def balloon_progress(self) -> DriverProgress:
        """Return how far the guest has come to what it was asked for last."""
        if self._target is None:
            raise UsageError(
                "the guest was asked for nothing",
                why="no size was given since this attach",
                hint="uffdballoon set PID --balloon SIZE",
            )
        return self._target.progress()


def read_event(event: dict[str, Any]) -> Heard:
    """Read what QEMU told; raise QmpError when it makes no sense."""
    with understanding("what happens (an event)"):
        kind = str(event["event"])
        return Heard(
            _notices_of(kind, event.get("data", {})),
            _monotonic_ns(event["timestamp"]) if kind == "RESET" else None,
            kind == "BALLOON_CHANGE",
            kind in _LAYOUT_EVENTS,
        )


def _notices_of(kind: str, data: dict[str, Any]) -> list[Notice]:
    if kind == "BALLOON_CHANGE":
        return [notice(_KINDS[kind], actual_bytes=int(data["actual"]))]
    if kind == "MIGRATION":
        return [notice(_KINDS[kind], str(data.get("status", "")))]
    if kind in _KINDS:
        return [notice(_KINDS[kind])]
    return []


def _monotonic_ns(timestamp: dict[str, int]) -> int:
    """Convert the time of a QMP event, which is CLOCK_REALTIME, to CLOCK_MONOTONIC.

    A time that cannot be is now: QEMU gives -1 when it does not know.
    """
    real_ns = int(timestamp["seconds"]) * 1_000_000_000 + int(timestamp["microseconds"]) * 1000
    now_ns = time.monotonic_ns()
    at_ns = now_ns - (time.time_ns() - real_ns)
    return at_ns if 0 < at_ns <= now_ns else now_ns


def _has_ended(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP and POLLERR are told in any case
    return bool(poll.poll(0))
