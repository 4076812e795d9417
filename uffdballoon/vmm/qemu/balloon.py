# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's balloon device, as the monitor shows it, and a size that it was asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError, RangeError, UnsupportedError, UsageError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.records.balloon import DriverProgress, ProgressState
from uffdballoon.model.sizes import format_size
from uffdballoon.vmm.qemu.asking import understanding

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.vmm.qemu.asking import Answers
    from uffdballoon.vmm.qemu.statistics import GuestStatistics

_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
_STATS_PERIOD_S = 1
_SUSPICIOUS_S = 2.0
_STALLED_S = 5.0
_SHORT_OF_MEMORY = 0.05  # of its RAM: a guest that has no more than this cannot give more up
_DRIVER_OK = "VIRTIO_CONFIG_S_DRIVER_OK"


@dataclass(frozen=True, slots=True)
class BalloonDevice:
    """A virtio-balloon device by its QOM path; ``backend`` is its virtio half."""

    path: str
    backend: str
    reports_free_pages: bool
    deflates_on_oom: bool


def find_balloon(monitor: Answers) -> BalloonDevice | None:
    """Find the balloon device; None when the machine has none. Raises QmpError."""
    with understanding("which devices there are"):
        return _find_balloon(monitor)


def _find_balloon(monitor: Answers) -> BalloonDevice | None:
    for container in _CONTAINERS:
        for item in monitor.execute("qom-list", {"path": container}):
            if "virtio-balloon" not in str(item.get("type")):
                continue
            path = f"{container}/{item['name']}"
            children = {
                str(child["name"])
                for child in monitor.execute("qom-list", {"path": path})
                if str(child.get("type", "")).startswith("child<virtio-balloon")
            }
            backend = f"{path}/{children.pop()}" if children else path
            return BalloonDevice(
                path,
                backend,
                reports_free_pages=_property(monitor, path, "free-page-reporting"),
                deflates_on_oom=_property(monitor, path, "deflate-on-oom"),
            )
    return None


def actual_bytes(monitor: Answers) -> int | None:
    """Return what the guest has left by its own account; None when nobody can say."""
    try:
        with understanding("query-balloon"):
            return int(monitor.execute("query-balloon")["actual"])
    except QmpError:
        return None


class BalloonTarget:
    """A size that the guest's driver was asked for, and how far it has come.

    With ``step_bytes`` it is asked for that much at first, and step() asks for more.
    """

    def __init__(
        self,
        monitor: Answers,
        device: BalloonDevice,
        statistics: GuestStatistics,
        target_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        step_bytes: int | None = None,
    ) -> None:
        """Ask the driver for it; raise QmpError when QEMU refuses."""
        self._monitor = monitor
        self._device = device
        self._statistics = statistics
        self._clock = clock
        self.target_bytes = target_bytes
        self.before_bytes = actual_bytes(monitor)
        self._last = self.before_bytes
        self._moved = clock()
        self._stopped = ""
        self._gives_back = self.before_bytes is not None and target_bytes > self.before_bytes
        self._asked_bytes = target_bytes
        if step_bytes is not None and self.before_bytes is not None:
            self._asked_bytes = max(target_bytes, self.before_bytes - step_bytes)
        monitor.execute("balloon", {"value": self._asked_bytes})

    def stop(self, why: str) -> None:
        """Say that the guest was asked to stop on its way there."""
        self._stopped = why

    @property
    def is_stepping(self) -> bool:
        """Whether there are steps to come."""
        return not self._stopped and self._asked_bytes > self.target_bytes

    def is_at_step(self) -> bool:
        """Tell whether the guest has come as far as it was asked to, and is to go further."""
        actual = actual_bytes(self._monitor) if self.is_stepping else None
        return actual is not None and actual <= self._asked_bytes

    def step(self, step_bytes: int) -> bool:
        """Ask for that much more, but for no more than is wanted; False when QEMU refuses."""
        asked_bytes = max(self.target_bytes, self._asked_bytes - step_bytes)
        try:
            self._monitor.execute("balloon", {"value": asked_bytes})
        except QmpError:
            return False
        self._asked_bytes = asked_bytes
        return True

    def gives_back(self, actual: int) -> bool:
        """Tell whether memory is on its way back to a guest that has so much."""
        self._gives_back = self._gives_back and actual < self.target_bytes
        return self._gives_back

    def progress(self) -> DriverProgress:
        """Return how far it has come, and what stands in the way."""
        actual = actual_bytes(self._monitor)
        if actual != self._last:
            self._last, self._moved = actual, self._clock()
        quiet_s = self._clock() - self._moved
        state, why = ProgressState.MOVING, ""
        if actual == self.target_bytes:
            state = ProgressState.REACHED
            self._gives_back = False
        elif self._stopped:
            state, why = ProgressState.STOPPED, self._stopped
        elif quiet_s >= _STALLED_S:
            state, why = ProgressState.STALLED, self._obstacle()
        self._listen(on=state is ProgressState.MOVING and quiet_s >= _SUSPICIOUS_S)
        return DriverProgress(
            target_bytes=self.target_bytes,
            before_bytes=self.before_bytes,
            actual_bytes=actual,
            state=state,
            why=why,
        )

    def _listen(self, *, on: bool) -> None:
        """Have the driver tell of the guest's memory in time for _obstacle()."""
        if on:
            self._statistics.want("set", _STATS_PERIOD_S)
        else:
            self._statistics.enough("set")

    def _obstacle(self) -> str:
        with understanding("query-status"):
            status = str(self._monitor.execute("query-status")["status"])
        if status != "running":
            return f"the VM is not running ({status})"
        if self._has_driver() is False:
            return "no driver in the guest serves the balloon device"
        told = self._statistics.read()
        available = told.get("available-memory", told.get("free-memory"))
        total = told.get("total-memory")
        if available is not None and total and available < total * _SHORT_OF_MEMORY:
            return (
                f"the guest is out of memory: {format_size(available)} of {format_size(total)} "
                "are left to it"
            )
        if not told:
            return "the guest's driver does not answer"
        return f"the guest's driver stopped there, with {format_size(available or 0)} available"

    def _has_driver(self) -> bool | None:
        """Tell whether a driver is ready; None on a QEMU before 7.2, which cannot say."""
        try:
            with understanding("x-query-virtio-status"):
                status = self._monitor.execute(
                    "x-query-virtio-status", {"path": self._device.backend}
                )
                return any(_DRIVER_OK in str(item) for item in status["status"]["statuses"])
        except QmpError:
            return None


def stop_where_it_is(monitor: Answers, asked: BalloonTarget | None, why: str) -> int | None:
    """Ask the driver for what the guest has left; return that, None when nothing was done.

    Nothing is where it cannot be asked, and where memory is on its way back to the guest.
    """
    actual = actual_bytes(monitor)
    if actual is None or (asked is not None and asked.gives_back(actual)):
        return None
    try:
        monitor.execute("balloon", {"value": actual})
    except QmpError:
        return None
    if asked is not None:
        asked.stop(why)
    return actual


def require_balloon(monitor: Answers | None, device: BalloonDevice | None) -> BalloonDevice:
    """Return the device, or say why the guest cannot be asked."""
    if monitor is None:
        raise UnsupportedError(
            "the guest's balloon driver cannot be asked",
            why="that goes through QEMU's monitor, and this attach has none",
            hint="attach with --qmp PATH",
        )
    if device is None:
        raise UnsupportedError(
            "the guest has no balloon",
            why="its QEMU was started without a virtio-balloon device",
            hint="plug one in: device_add virtio-balloon-pci",
        )
    return device


def require_target(asked: BalloonTarget | None) -> BalloonTarget:
    """Return what the guest was asked for, or say that it was asked for nothing."""
    if asked is None:
        raise UsageError(
            "the guest was asked for nothing",
            why="no size was given since this attach",
            hint="uffdballoon set PID --balloon SIZE",
        )
    return asked


def refuse_as_size(target_bytes: int, ram_bytes: int) -> None:
    """Raise RangeError for a size that a guest with so much RAM cannot have."""
    if not PAGE_BYTES <= target_bytes <= ram_bytes:
        raise RangeError(
            f"{format_size(target_bytes)} is no size for this guest",
            why=f"it has {format_size(ram_bytes)} of RAM",
            hint="give what the guest shall have left, at most its RAM",
        )


def _property(monitor: Answers, path: str, name: str) -> bool:
    try:
        return bool(monitor.execute("qom-get", {"path": path, "property": name}))
    except QmpError:
        return False  # older than the feature
