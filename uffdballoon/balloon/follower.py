# SPDX-License-Identifier: GPL-2.0-or-later
"""What following the guest's balloon brought: told once it is quiet, and seen to."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from uffdballoon.balloon.changes import Changes
from uffdballoon.core.fault_loop import Observing
from uffdballoon.core.ledger import Ledger
from uffdballoon.errors import TargetGoneError, UffdballoonError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.records.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.balloon.enforcer import Enforcer
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.job import Job
    from uffdballoon.model.records.events import Notice
    from uffdballoon.model.records.statistics import InflateCounts, RecordedTrace
    from uffdballoon.observe.observers import Observer

_KEPT = 64  # of the last inflates


class Follower:
    """The C library follows by itself; ``parts`` are (range in a RAM block, its first gfn)."""

    def __init__(
        self, enforcer: Enforcer, observer: Observer, parts: Sequence[tuple[HvaRange, int]]
    ) -> None:
        self._enforcer = enforcer
        self._loop = enforcer.loop
        self._scans = observer.observing is Observing.SCAN
        self._parts = parts
        self._before = Ledger(enforcer.ledger.blocks)  # as it was when last told of
        self._now = Ledger(enforcer.ledger.blocks)  # as it is told of
        self.changes = Changes(parts)
        self._noting: Job[None] | None = None
        self._inflates: deque[InflateCounts] = deque(maxlen=_KEPT)
        self._seen = (0, 0)  # pages given up and taken back, as last told
        self._resyncs = self._lost = 0
        self._errno = 0

    def fileno(self) -> int:
        """Return an fd that is readable when there is something for take_news()."""
        return self._loop.news_fileno()

    def answer(self) -> None:
        """Have fileno() be quiet until there is something else; to be called before look()."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._loop.news_fileno())

    def look(self) -> bool:
        """Follow now, not in a moment; True while there is more to come."""
        news = self._loop.scan() > 0 if self._scans else False
        return self._loop.follow() or news or self.has_news()

    def catch_up(self) -> None:
        """Follow now, unless the balloon moves: the C library's thread does every 10 ms then.

        To follow takes as long as there is much to follow, which whoever serves others has not.
        Raises as FaultLoop.follow().
        """
        if self._scans or not self._loop.stats().moving:
            self.look()

    def arm(self) -> None:
        """Trap what the guest gave up until now, before something else is done about it.

        What fails is told after the next look().
        """
        with contextlib.suppress(UffdballoonError):
            self._loop.follow()

    def has_news(self) -> bool:
        """Tell whether the balloon moved, and that was not told yet."""
        stats = self._loop.stats()
        return (stats.observed_inflated, stats.observed_deflated) != self._seen

    def take_news(self) -> list[Notice]:
        """See to what is urgent, and tell what the guest gave up and took back."""
        return [*self._zap_again(), *self._told_errors(), *self._told_changes()]

    def note(self) -> float | None:
        """Go on with measuring an inflate that was told of.

        Returns seconds until it is to be called again; None: when there is another.
        """
        if self._noting is None:
            return None
        try:
            return next(self._noting)
        except StopIteration:
            self._noting = None
            return None

    def tracing(self, ram_bytes: int) -> Job[RecordedTrace]:
        """Return the pages of the latest changes, of the one that is being measured, too."""
        while (away_s := self.note()) is not None:
            yield away_s
        return (yield from self.changes.telling(ram_bytes))

    def measuring(self, pid: int, ram_bytes: int) -> Job[Statistics]:
        """Return how fragmented the balloon is, and each inflate was."""
        while (away_s := self.note()) is not None:
            yield away_s
        balloon = yield from self._enforcer.ledger.measuring_fragments(self._parts)
        return Statistics(
            pid=pid,
            ram_bytes=ram_bytes,
            balloon=balloon.counts(),
            inflates=tuple(self._inflates),
            arrivals={1 << i: count for i, count in enumerate(self._loop.arrivals()) if count},
        )

    def _zap_again(self) -> list[Notice]:
        try:
            self._enforcer.zap_again()
        except TargetGoneError:
            raise
        except UffdballoonError as error:
            return [notice(EventKind.NOT_ZAPPED, str(error))]
        return []

    def _told_errors(self) -> list[Notice]:
        number, before = self._loop.stats().follow_errno, self._errno
        self._errno = number
        if number in (0, before):
            return []
        what = os.strerror(number)
        if number == errno.ENOMEM:
            what = "the kernel has no room for another mapping of the target (vm.max_map_count)"
        return [
            notice(EventKind.NOT_TRAPPED, f"some of what the guest gave up is not trapped: {what}")
        ]

    def _told_changes(self) -> list[Notice]:
        stats = self._loop.stats()
        if stats.moving:
            return []  # the eventfd tells when it has been quiet for a moment
        now = (stats.observed_inflated, stats.observed_deflated)
        notices = [
            notice(kind, size=pages * PAGE_BYTES)
            for kind, pages in zip(
                (EventKind.INFLATE, EventKind.DEFLATE),
                map(operator.sub, now, self._seen),
                strict=True,
            )
            if pages
        ]
        if notices:
            self._seen = now
            while self.note() is not None:
                pass  # the one before, which was quiet for a moment
            self._enforcer.ledger.copy_to(self._now)
            self._noting = self._note_inflate(time.time_ns())
        if stats.resyncs != self._resyncs:
            lost = stats.lost_records - self._lost
            what = f"{lost} record(s) of the trace were lost" if lost else "not all was told"
            why = f"{what}; looked at memory instead"
            self._lost = stats.lost_records
            notices.append(notice(EventKind.RESYNC, why))
            self._resyncs = stats.resyncs
        return notices

    def _note_inflate(self, time_ns: int) -> Job[None]:
        """Keep what the balloon has gained since the last time."""
        added = yield from self._now.measuring_fragments(self._parts, self._before)
        if added.pages:
            self._inflates.append(added.counts_at(time_ns))
        yield from self.changes.noting(time_ns, self._now, self._before)
        self._now.copy_to(self._before)
