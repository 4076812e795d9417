# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU tells of its balloon device, page by page, in a file of ours."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError, TargetGoneError, UffdballoonError, UnsupportedError
from uffdballoon.host.bounded_file import open_bounded_file
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.notice import notice
from uffdballoon.model.part import Tick
from uffdballoon.model.records.events import EventKind
from uffdballoon.target.seccomp import LOG, look_at_filters
from uffdballoon.vmm.qemu.asking import sparse_bytes
from uffdballoon.vmm.qemu.balloon import actual_bytes
from uffdballoon.vmm.qemu.log_events import BalloonEvents, EventsWatch
from uffdballoon.vmm.qemu.log_file import NAME, DivertedLog, was_left_diverted
from uffdballoon.vmm.qemu.ram_watch import ram_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.model.records.events import Notice
    from uffdballoon.target.injector import Injector
    from uffdballoon.vmm.qemu.monitor import Monitor

MOST_BYTES = 64 << 20
"""Of lines that nobody has read: of 900,000 pages. QEMU writes on without a wait, into nothing."""
_RECONNECT_S = 1.0
_AGAIN_S = 1.0  # two that want the log do not take it from each other all the time
_LOOKS_S = 0.02


_TAKEN_AGAIN = (
    "taken again, and memory is looked at for what was not observed; it is given back at the end"
)


def _log_taken(why: str) -> Notice:
    return notice(EventKind.LOG_TAKEN, f"another client of the monitor {why}")


class BalloonLog:
    """The trace events of the balloon go to the file ``fd`` until close(), and all else there.

    ``actual_pages`` are in the balloon, by the driver's word, when they begin to.

    A manager that is killed leaves QEMU with the file, which stays as small; the next one puts
    back what was before.
    """

    def __init__(
        self,
        monitor: Monitor,
        injector: Injector,
        *,
        trust_seccomp: bool,
        progress: Callable[[str], None],
    ) -> None:
        """Raise UnsupportedError or PermissionDeniedError where that cannot be, or be undone."""
        self._monitor = monitor
        self._progress = progress
        self._watch = EventsWatch(monitor)
        self._again_at = 0.0
        self._is_told = False
        target = injector.target
        look_at_filters(target.pid, target.pidfd, injector.tids, trusted=trust_seccomp).refuse(
            LOG, target.pid
        )
        left = was_left_diverted(target)
        self._events = BalloonEvents(monitor, were_left_on=left)
        with contextlib.ExitStack() as undo:
            self.fd, why = open_bounded_file(NAME, MOST_BYTES)
            undo.callback(os.close, self.fd)
            if why:
                progress(
                    "a guest that moves its balloon while we are stopped fills the host's memory "
                    f"with lines of its log: no tmpfs for it ({why})"
                )
            self._log = DivertedLog(monitor, injector, self.fd)
            undo.callback(self._log.close)
            undo.callback(self._give_back)
            if left:
                progress("the log of QEMU went to a manager that was killed; it is given back")
            self.actual_pages = _ballooned_bytes(monitor) // PAGE_BYTES
            self._events.begin()
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Have events and log as they were; say so where QEMU does not answer."""
        self._undo.close()

    def tick(self) -> Tick:
        """Take the log again where another client of the monitor took it, or ended the events.

        It is told as an event. What the guest did meanwhile was not observed. Raises
        TargetGoneError.
        """
        is_ours = self._log.is_ours()
        if is_ours and not self._watch.are_off():
            self._is_told = False
            return Tick(due_s=None if self._log.learn_former() else _LOOKS_S)
        wait_s = self._again_at - time.monotonic()
        if wait_s > 0:
            return Tick(due_s=wait_s)
        self._again_at = time.monotonic() + _AGAIN_S
        what = "switched its trace events off" if is_ours else "had QEMU log elsewhere"
        try:
            self._take_again(is_ours=is_ours)
        except TargetGoneError:
            raise
        except UffdballoonError as error:
            was_told, self._is_told = self._is_told, True
            told = _log_taken(f"{what}, and nothing is observed: {error}")
            return Tick(() if was_told else (told,), _AGAIN_S)
        return Tick([_log_taken(f"{what}: {_TAKEN_AGAIN}")], _LOOKS_S)

    def _take_again(self, *, is_ours: bool) -> None:
        if is_ours:
            self._events.begin()
            self._log.reopen()
        else:
            self._log.retake()

    def _give_back(self) -> None:
        try:
            try:
                self._events.restore()
            except QmpError:
                # Ended by QEMU, perhaps a while ago: it may take us back.
                if not self._monitor.reconnect(_RECONNECT_S):
                    raise
                self._events.restore()
            self._log.restore()
        except TargetGoneError:
            pass
        except UffdballoonError as error:
            self._progress(
                f"the log of QEMU was not given back, and what it writes is lost: {error} "
                "(`logfile PATH` of its monitor sets one; the next `--observer monitor` gives it "
                "back)"
            )


def _ballooned_bytes(monitor: Monitor) -> int:
    """Ask for the driver's count, which QEMU subtracts from the RAM (virtio_balloon_stat()).

    What virtio-mem plugs is no part of that RAM.
    """
    whole_bytes, left_bytes = ram_bytes(monitor), actual_bytes(monitor)
    if whole_bytes is None or left_bytes is None:
        raise UnsupportedError(
            "observer monitor cannot be had",
            why="QEMU does not say how much is in the balloon (query-balloon): has the guest a "
            "balloon device?",
            hint="use another observer",
        )
    return whole_bytes - sparse_bytes(monitor) - left_bytes
