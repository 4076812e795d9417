# SPDX-License-Identifier: GPL-2.0-or-later
"""Letting the guest's memory go for a migration that has a userfaultfd of its own.

A thread of the C library lifts the traps as soon as QEMU's monitor tells that such a migration
begins: QEMU registers the memory a few milliseconds later. What is left is done here.

An operator lifts them by hand, since QEMU refuses to set the capability of a background snapshot
while anything is trapped. They are set again when that snapshot has ended, when the operator says
so, and after the time that was given at the latest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uffdballoon.errors import TargetBusyError, UsageError
from uffdballoon.model.durations import format_duration
from uffdballoon.model.notice import notice
from uffdballoon.model.part import Tick
from uffdballoon.model.records.changes import TakenUp, Yielded
from uffdballoon.model.records.events import EventKind
from uffdballoon.vmm.qemu.migrating import ENDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.job import Job
    from uffdballoon.model.part import Source
    from uffdballoon.model.records.events import Notice
    from uffdballoon.session.attachment import Attachment

_AGAIN_S = 0.1
_MANY_TRIES = 10
_SELDOM_S = 5.0
_BEGINS = "setup"
_NS_PER_S = 1_000_000_000


class Yielding:
    """Tells of traps that are lifted, and sets them again after the migration."""

    name = "yielding"

    def __init__(self, attached: Attachment) -> None:
        self._pid = attached.target.pid
        self._machine = attached.machine
        self._migrations = attached.machine.migrations
        self._yielder = attached.yielder
        self._loop = attached.enforcer.loop
        self._ledger = attached.enforcer.ledger
        self._asking: Job[None] | None = None
        self._under_way = False  # as events told
        self._is_over = False  # what was yielded for
        self._was_lost = False
        self._is_told = False
        self._tries = 0
        self._until: float | None = None  # an operator's time is up, monotonic
        self._by_hand = False
        self._is_ending = False  # as soon as it is known whether QEMU needs the memory now
        self._was_trapping = True
        self._untold: list[Notice] = []

    def sources(self) -> Sequence[Source]:
        return ()

    def tick(self) -> Tick:
        """Follow what was told of migrations; nothing is due while there are none."""
        for status in self._migrations.take():
            self._follow(status)
        left_s = self._look_at_the_clock()
        asking_s = self._learn()
        self._watch()
        again_s, taken_up = self._take_up()
        told, self._untold = self._untold, []
        waits = [wait for wait in (left_s, asking_s, again_s) if wait is not None]
        return Tick(told, min(waits, default=None), others_s=0.0 if taken_up else None)

    def lift(self, for_ns: int) -> Yielded:
        """Lift all traps at an operator's word, for so long at most; whoever is held goes on."""
        self._yielder.yield_now()
        self._until = time.monotonic() + for_ns / _NS_PER_S
        self._by_hand, self._tries = True, 0
        self._is_over = self._is_ending = False
        ballooned_bytes = self._ledger.ballooned_bytes
        self._is_told = True
        why = f"the operator wants it; nothing is trapped for {format_duration(for_ns)} at most"
        self._untold.append(notice(EventKind.YIELDED, why, size=ballooned_bytes))
        return Yielded(ballooned_bytes=ballooned_bytes, for_ns=for_ns)

    @property
    def is_time_up(self) -> bool:
        """Whether no operator's time is running."""
        return self._until is None

    def take_up(self) -> TakenUp:
        """Set the traps again at an operator's word.

        Raises UsageError where they are set, and TargetBusyError while a migration needs the
        memory: they are set when it has ended.
        """
        if not self._yielder.is_yielded:
            raise UsageError(
                "the traps are set",
                why=f"nothing of process {self._pid} was let go",
                hint=f"`uffdballoon status {self._pid}` shows what is trapped",
            )
        if self._under_way and self._migrations.needs_memory:
            raise TargetBusyError(
                "the traps cannot be set now",
                why="a migration is under way for which QEMU has a userfaultfd of its own",
                hint="they are set when it has ended; to end it: migrate_cancel in QEMU's monitor",
                pid=self._pid,
            )
        return TakenUp(given_bytes=self._set_again())

    def _look_at_the_clock(self) -> float | None:
        """End an operator's time when it is up; return how much is left of it.

        A migration that has begun meanwhile, and has not been told of yet, is asked for first.
        """
        if self._until is None:
            return None
        left_s = self._until - time.monotonic()
        if left_s > 0:
            return left_s
        self._until = None
        self._by_hand = False
        if self._machine.is_lost:
            self._is_over = self._yielder.is_yielded
        elif not self._under_way:
            self._is_ending = True
            self._asking = self._migrations.asking()
        return None

    def _follow(self, status: str) -> None:
        if status == _BEGINS:
            self._under_way, self._is_over = True, False
            self._asking = self._migrations.asking()
            self._tell_yielded()
        elif status in ENDS:
            if status == "failed" and self._has_failed_for_us():
                self._untold.append(
                    notice(
                        EventKind.YIELD_FAILED,
                        "QEMU found the memory taken, and has stopped the VM perhaps: `cont` in "
                        "its monitor lets it run. Detach before the next try",
                    )
                )
            self._under_way, self._is_over = False, self._ends_with_migration()

    def _ends_with_migration(self) -> bool:
        """Whether the traps are set again when a migration has ended: not by a plain one."""
        return self._yielder.is_yielded and (self._migrations.needs_memory or not self._by_hand)

    def _has_failed_for_us(self) -> bool:
        return (
            self._migrations.needs_memory
            and not self._yielder.is_yielded
            and self._loop.stats().armed_bytes > 0
        )

    def _tell_yielded(self) -> None:
        if self._yielder.is_yielded and not self._is_told:
            self._is_told = True
            why = "QEMU needs a userfaultfd of its own; nothing is trapped until it has ended"
            self._untold.append(notice(EventKind.YIELDED, why, size=self._ledger.ballooned_bytes))

    def _learn(self) -> float | None:
        """Ask what the next migration is, when that may have changed; return when to go on."""
        is_trapping = self._loop.stats().armed_bytes > 0
        if is_trapping and not self._was_trapping:
            self._asking = self._migrations.asking()
        self._was_trapping = is_trapping
        if self._machine.is_lost:
            self._was_lost = True
            return None
        if self._was_lost and self._asking is None:
            self._asking = self._migrations.asking()
        if self._asking is None:
            return None
        try:
            return next(self._asking)
        except StopIteration:
            self._asking = None
        self._correct()
        return None

    def _correct(self) -> None:
        """Do late what should have been done at the beginning, or undo what should not have."""
        was_lost, self._was_lost = self._was_lost, False
        is_ending, self._is_ending = self._is_ending, False
        if is_ending:
            self._under_way = self._migrations.needs_memory and self._migrations.is_under_way
            self._is_over = self._yielder.is_yielded and not self._under_way
        elif was_lost and not self._migrations.is_under_way:
            self._under_way, self._is_over = False, self._ends_with_migration()
        elif self._under_way and not self._migrations.needs_memory:
            self._is_over = self._ends_with_migration()
        elif self._under_way and not self._yielder.is_yielded:
            self._yielder.yield_now()
            self._tell_yielded()

    def _watch(self) -> None:
        watches = self._migrations.needs_memory and not self._machine.is_lost
        self._yielder.watch(self._machine.relay if watches else None)

    def _try_again_s(self) -> float:
        """Return when to try again; QEMU 7.2 keeps its userfaultfd after one that did not end well.

        Nobody answers it then (migration/migration.c, bg_migration_thread()).
        """
        self._tries += 1
        if self._tries == _MANY_TRIES:
            why = (
                "the migration has ended, and QEMU keeps its userfaultfd: nothing is trapped, and "
                "the guest waits at its next write perhaps, with or without us"
            )
            self._untold.append(notice(EventKind.NOT_TAKEN_UP, why))
        return _AGAIN_S if self._tries < _MANY_TRIES else _SELDOM_S

    def _take_up(self) -> tuple[float | None, bool]:
        """Trap again once it is over; return when to try again, and whether it is done."""
        # It is yielded before we hear why.
        if not self._is_over or not self._yielder.is_yielded:
            return None, False
        try:
            self._set_again()
        except TargetBusyError:
            return self._try_again_s(), False
        return None, True

    def _set_again(self) -> int:
        """Trap the balloon again, and tell; return the bytes that are the guest's since."""
        given_bytes = self._yielder.take_up()
        self._is_over = self._is_told = self._by_hand = self._is_ending = False
        self._until = None
        self._tries = 0
        why = "the balloon is trapped again; so much was touched meanwhile, and is the guest's"
        self._untold.append(notice(EventKind.TAKEN_UP, why, size=given_bytes))
        return given_bytes
