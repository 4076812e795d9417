# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a session whose work is done elsewhere, and what each says to the others.

What the guest gave up is armed before it is counted or split: a split holds the lock of the
target's mappings, for which arming would wait. While the balloon moves a thread of the C library
arms every 10 ms, and only a limit is worth the time of doing it here.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from uffdballoon.errors import UffdballoonError, WindowBudgetError
from uffdballoon.model.part import Source, Tick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.balloon.follower import Follower
    from uffdballoon.balloon.fragmentation import FragmentationGuard
    from uffdballoon.balloon.reclaimer import Reclaimer
    from uffdballoon.balloon.survey import Survey
    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.core.yielding import Yielder
    from uffdballoon.model.job import Job
    from uffdballoon.observe.observers import LogOfBalloon
    from uffdballoon.session.vcpus import Vcpus


class Following:
    """Tells what the guest gave up and took back, and has windows tidied."""

    name = "follower"

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._rang = False

    def sources(self) -> Sequence[Source]:
        return (Source("news", self._follower.fileno(), self._on_news),)

    def tick(self) -> Tick:
        """Follow now; what the balloon's move means to the others is theirs to find out."""
        rang, self._rang = self._rang, False
        with contextlib.suppress(WindowBudgetError):  # take_news() tells of it
            self._follower.catch_up()
        news = self._follower.take_news()
        return Tick(news, self._follower.note(), others_s=0.0 if rang else None)

    def _on_news(self) -> bool:
        self._follower.answer()
        self._rang = True
        return False


class KeepingLog:
    """Sees to it that QEMU still logs to us, where its log is what is followed."""

    name = "log"

    def __init__(self, log: LogOfBalloon | None) -> None:
        self._log = log

    def sources(self) -> Sequence[Source]:
        return ()

    def tick(self) -> Tick:
        """Look at it; the C library rings when QEMU has left it, by the source of Following."""
        return Tick() if self._log is None else self._log.tick()


class Guarding:
    """Stops an inflate that breaks too many huge pages, and has the others go on in steps."""

    name = "fragmentation guard"

    def __init__(self, guard: FragmentationGuard, follower: Follower) -> None:
        self._guard = guard
        self._follower = follower

    def sources(self) -> Sequence[Source]:
        return ()

    def tick(self) -> Tick:
        if self._guard.is_limited:
            self._guard.note_step()  # before what was given up until then is armed
            self._follower.arm()
        return Tick(self._guard.look(), self._guard.due_s())


class Reclaiming:
    """Gives back, at its rate, what zapped pages keep."""

    name = "reclaimer"

    def __init__(self, reclaimer: Reclaimer, follower: Follower, yielder: Yielder) -> None:
        self._reclaimer = reclaimer
        self._yielder = yielder
        self._follower = follower

    def sources(self) -> Sequence[Source]:
        return ()

    def tick(self) -> Tick:
        if self._reclaimer.is_pending:
            with contextlib.suppress(UffdballoonError):  # told as news
                self._follower.catch_up()
        if self._yielder.is_yielded:  # the memory is somebody else's: after that
            return Tick()
        return Tick(due_s=self._reclaimer.work())


class Surveying:
    """Goes on with a walk over the page tables that is too long for who asks."""

    name = "survey"

    def __init__(self, survey: Survey) -> None:
        self._survey = survey

    def sources(self) -> Sequence[Source]:
        return ()

    def tick(self) -> Tick:
        return Tick(due_s=self._survey.work())


class WatchingThreads:
    """Tells the fault loop of vCPUs that come and go; of threads nothing else tells."""

    name = "vcpus"

    def __init__(self, vcpus: Vcpus, loop: FaultLoop) -> None:
        self._vcpus = vcpus
        self._loop = loop
        self._following: Job[None] | None = None

    def sources(self) -> Sequence[Source]:
        return ()

    def tick(self) -> Tick:
        self._following = self._following or self._vcpus.follow_threads(self._loop)
        try:
            return Tick(due_s=next(self._following))
        except BaseException as end:
            self._following = None
            if isinstance(end, StopIteration):
                return Tick()
            raise
