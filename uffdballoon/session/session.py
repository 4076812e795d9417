# SPDX-License-Identifier: GPL-2.0-or-later
"""One attached target, from attach to detach. A reader starts here.

What it is made of is wired in attachment.py. Leaving the context lets it all go, and the guest
goes on.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Self

from uffdballoon.balloon.blocks import look_at_blocks
from uffdballoon.errors import TargetGoneError
from uffdballoon.model.job import run_job
from uffdballoon.session.attachment import Attachment
from uffdballoon.session.changes import Changes
from uffdballoon.session.driver import Driver
from uffdballoon.session.monitoring import Monitoring
from uffdballoon.session.parts import (
    Following,
    Guarding,
    KeepingLog,
    Reclaiming,
    Surveying,
    WatchingThreads,
)
from uffdballoon.session.policies import Policies
from uffdballoon.session.reactions import Reactions
from uffdballoon.session.recording import recording
from uffdballoon.session.resets import Resets
from uffdballoon.session.status import reporting
from uffdballoon.session.verifying import disagreeing, verifying
from uffdballoon.session.yielding import Yielding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.balloon.nodes import NodePart
    from uffdballoon.core.fault_loop import LoopStats
    from uffdballoon.model.addresses import GpaRange
    from uffdballoon.model.blockmap import BlockMap
    from uffdballoon.model.granule import Granule
    from uffdballoon.model.job import Job
    from uffdballoon.model.origin import Origin
    from uffdballoon.model.part import Part
    from uffdballoon.model.ram import Layout
    from uffdballoon.model.recording import Recording
    from uffdballoon.model.records.balloon import BalloonProgress, Verification
    from uffdballoon.model.records.changes import ChangeReport
    from uffdballoon.model.records.events import Event, Notice
    from uffdballoon.model.records.statistics import RecordedTrace, Statistics
    from uffdballoon.model.records.status import Held, Status, UffdMethod
    from uffdballoon.session.options import SessionOptions
    from uffdballoon.target.process import Target

_PATIENCE_S = 30.0
_LOOK_S = 0.02
_CALM_LOOKS = 2  # in a row: what was about to be told when we looked first


class Session:
    """An attached target; a context manager that detaches.

    Raises the named errors of what it wires. Must be used by one thread.
    """

    def __init__(
        self, options: SessionOptions, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self.attached = attached = Attachment(options, progress)
        self._resets = Resets(attached)
        self._changes = Changes(attached, self._resets)
        self._driver = Driver(attached)
        self._reactions = Reactions(attached)
        self._monitoring = Monitoring(attached, self._resets)
        self.policies = Policies(attached)
        self.yielding = Yielding(attached)
        # A reset is followed first: it empties the balloon that the others look at.
        self.parts: tuple[Part, ...] = (
            self._resets,
            Following(attached.follower),
            KeepingLog(attached.observer.log),
            Guarding(attached.guard, attached.follower),
            Reclaiming(attached.reclaimer, attached.follower, attached.yielder),
            Surveying(attached.survey),
            WatchingThreads(attached.vcpus, attached.enforcer.loop),
            self._monitoring,
            self.yielding,
            self._reactions,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach; the guest goes on, unenforced."""
        self._reactions.close()
        self.attached.close()

    def leave_to_keeper(self) -> bool:
        """Have close() leave the traps to the keeper; False without one."""
        return self.attached.leave_to_keeper()

    @property
    def options(self) -> SessionOptions:
        return self.attached.options

    @property
    def target(self) -> Target:
        return self.attached.target

    @property
    def origin(self) -> Origin:
        """Whose its events are."""
        return self.attached.origin

    @property
    def layout(self) -> Layout:
        return self.attached.layout

    @property
    def uffd_method(self) -> UffdMethod:
        return self.attached.uffd_method

    @property
    def vcpus(self) -> dict[int, int]:
        """The numbers of the vCPUs by thread id, as far as they are known."""
        return self.attached.vcpus.numbers

    @property
    def reaches_monitor(self) -> bool:
        """Whether there is a monitor, and QEMU has not hung up."""
        machine = self.attached.machine
        return machine.monitor is not None and not machine.is_lost

    def inflate(self, span: GpaRange, granule: Granule, *, guest_agreed: bool) -> ChangeReport:
        """Take a range from the guest, for those who have no loop; see Changes.inflating()."""
        return run_job(self.inflating([span], granule, guest_agreed=guest_agreed))

    def inflating(
        self, spans: Sequence[GpaRange], granule: Granule, *, guest_agreed: bool
    ) -> Job[ChangeReport]:
        """Take ranges from the guest, a part in a step; see Changes.inflating()."""
        return self._changes.inflating(spans, granule, guest_agreed=guest_agreed)

    def inflate_node(
        self, node: int, granule: Granule, *, size_bytes: int | None, guest_agreed: bool
    ) -> ChangeReport:
        """Take memory of a node from the guest, for those who have no loop."""
        job = self.inflating_nodes([(node, size_bytes)], granule, guest_agreed=guest_agreed)
        return run_job(job)

    def inflating_nodes(
        self, parts: Sequence[NodePart], granule: Granule, *, guest_agreed: bool
    ) -> Job[ChangeReport]:
        """Take memory of nodes, a part in a step; see Changes.inflating_nodes()."""
        return self._changes.inflating_nodes(parts, granule, guest_agreed=guest_agreed)

    def deflate(self, span: GpaRange, granule: Granule) -> ChangeReport:
        """Give a range back to the guest, for those who have no loop; see Changes.deflating()."""
        return run_job(self.deflating([span], granule))

    def deflating(self, spans: Sequence[GpaRange], granule: Granule) -> Job[ChangeReport]:
        """Give ranges back, a part in a step; see Changes.deflating()."""
        return self._changes.deflating(spans, granule)

    def deflating_all(self) -> Job[ChangeReport]:
        """Give all of it back, a part in a step; see Changes.deflating_all()."""
        return self._changes.deflating_all()

    def deflate_node(self, node: int, granule: Granule, size_bytes: int | None) -> ChangeReport:
        """Give memory of a node back, for those who have no loop."""
        return run_job(self.deflating_nodes([(node, size_bytes)], granule))

    def deflating_nodes(self, parts: Sequence[NodePart], granule: Granule) -> Job[ChangeReport]:
        """Give memory of nodes back, a part in a step; see Changes.deflating_nodes()."""
        return self._changes.deflating_nodes(parts, granule)

    def refuse_outside_node(self, node: int, span: GpaRange) -> None:
        """Raise RangeError when a range is not memory of that node of the guest."""
        self.attached.nodes.refuse_outside(node, span)

    def ask_balloon(self, target_bytes: int) -> BalloonProgress:
        """Ask the guest's driver to leave it that much memory; see Driver.ask()."""
        return self._driver.ask(target_bytes)

    def ask_for_floor(self) -> BalloonProgress | None:
        """Ask the guest's driver for what has to stay in the balloon; see Driver.leave()."""
        return self._driver.leave(self.options.terms.floor_bytes)

    def balloon_progress(self) -> BalloonProgress:
        """Return how far the guest has come to what it was asked for last."""
        return self._driver.progress()

    def reset(self, at_ns: int = 0) -> None:
        """Empty the balloon, as a reset of the guest does; see Resets.reset()."""
        self._resets.reset(at_ns)

    def release(self, tid: int | None = None) -> int:
        """Let the frozen thread ``tid`` go on, or all that are frozen; return how many did.

        Raises UsageError, with the threads that are held, for one that is not frozen.
        """
        return self._reactions.release(tid)

    def disagreements(self) -> list[GpaRange]:
        """List ballooned stretches that hold memory in the target: there should be none."""
        return run_job(disagreeing(self.attached))

    def verify(self) -> Verification:
        """Compare the ledger with the page tables, for those who have no loop; see verifying()."""
        return run_job(self.verifying())

    def verifying(self) -> Job[Verification]:
        """Walk the page tables; list where ledger and kernel, or the guest, disagree."""
        return verifying(self.attached, self._driver)

    def status(self) -> Status:
        """Return the state of it all, for those who have no loop; see reporting()."""
        return run_job(self.reporting())

    def reporting(self) -> Job[Status]:
        """Return the state of it all; see status.reporting()."""
        return reporting(self.attached, self._changes, self._resets, self._driver, self._reactions)

    def held(self) -> list[Held]:
        """List the touches that are not answered yet: frozen, throttled, or waiting for us."""
        return self._reactions.held()

    def touch_counts(self) -> LoopStats:
        """Return the fault loop's counters alone, which costs nothing; status() asks QEMU, too."""
        return self.attached.enforcer.loop.stats()

    def statistics(self) -> Statistics:
        """Return what measuring() does, for those who have no loop."""
        return run_job(self.measuring())

    def measuring(self) -> Job[Statistics]:
        """Return how fragmented the balloon is, and each inflate was; a part in a step."""
        return self.attached.follower.measuring(self.target.pid, self.layout.ram_bytes)

    def tracing(self) -> Job[RecordedTrace]:
        """Return the pages of the latest inflates and deflates; a part in a step."""
        return self.attached.follower.tracing(self.layout.ram_bytes)

    def block_map(self, recent_s: float) -> BlockMap:
        """Take a picture of the guest's memory, for those who have no loop; see mapping()."""
        return run_job(self.mapping(recent_s))

    def mapping(self, recent_s: float) -> Job[BlockMap]:
        """Return what each 2 MiB of the guest's memory is; touches of ``recent_s`` are shown."""
        return look_at_blocks(
            self.attached.enforcer, self.layout, pid=self.target.pid, recent_s=recent_s
        )

    def recording(self) -> Job[Recording]:
        """Return the balloon's runs as they are, a part in a step."""
        return recording(self.attached)

    def drain_events(self) -> list[Event]:
        """Take waiting events, and do what they ask for.

        A touch that a rung held for us (`pause`, `poison`) is seen to here, so
        that this has to be called soon after.
        """
        return self._reactions.drain()

    def drain_monitor(self) -> list[Notice]:
        """Take what the monitor told, and follow it: a reset empties the balloon."""
        return self._monitoring.hear()

    def keep_up(self) -> list[Event]:
        """Tick all parts once, for those who have no loop; return what is to be told.

        Windows are armed without it, by a thread of the C library.
        """
        told: list[Event] = []
        with contextlib.suppress(TargetGoneError):  # whoever waits for its end knows
            for part in self.parts:
                told += part.tick().events
        return told

    def settle(self, patience_s: float = _PATIENCE_S) -> list[Event]:
        """Serve as a manager does, until the guest's balloon is quiet; return the events.

        For those who have no loop of their own. What still moves after
        ``patience_s`` is left as it is.
        """
        told: list[Event] = []
        deadline = time.monotonic() + patience_s
        calm = 0
        while calm < _CALM_LOOKS and time.monotonic() < deadline:
            news = [*self.keep_up(), *self.drain_monitor()]
            restless = self.attached.follower.look() or self.attached.reclaimer.is_pending
            calm = 0 if news or restless else calm + 1
            told += news
            while events := self.drain_events():
                told += events
            time.sleep(_LOOK_S)
        return told
