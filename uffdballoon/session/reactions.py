# SPDX-License-Identifier: GPL-2.0-or-later
"""Touches that the fault loop tells of: made into events, and those held for us seen to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uffdballoon.core.fault_loop import Resolution
from uffdballoon.errors import UffdballoonError, UsageError
from uffdballoon.model.job import run_job
from uffdballoon.model.notice import notice
from uffdballoon.model.part import Source, Tick
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.records.status import Held
from uffdballoon.model.touch import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.core.fault_loop import ParkedTouch, TouchRecord
    from uffdballoon.model.job import Job
    from uffdballoon.model.records.events import Event, Notice
    from uffdballoon.session.attachment import Attachment

_TIDY_AFTER_S = 1.0
"""After touches: how long windows that they may have emptied stay."""


class Reactions:
    """What is done about a touch outside of the fault loop."""

    name = "touches"

    def __init__(self, attached: Attachment) -> None:
        self._enforcer = attached.enforcer
        self._loop = attached.enforcer.loop
        self._layout = attached.layout
        self._vcpus = attached.vcpus
        self._machine = attached.machine
        self._origin = attached.origin
        self._dropped = 0
        self._untold: list[Event] = []
        self._pausing: Job[list[Event]] | None = None

    def sources(self) -> Sequence[Source]:
        return (Source("events", self._loop.event_fileno(), self._on_events),)

    def close(self) -> None:
        """Let touches go that are held for a pause which is under way."""
        if self._pausing is not None:
            self._pausing.close()

    def tick(self) -> Tick:
        """Tell what was taken, and go on with a pause.

        The other parts see to what the touches have changed.
        """
        due_s = self._go_on_pausing()
        told, self._untold = self._untold, []
        return Tick(told, due_s, others_s=_TIDY_AFTER_S if told else None)

    def drain(self) -> list[Event]:
        """Take waiting events, and do all that they ask for; an empty drain arms the eventfd."""
        events = self._take()
        pausing, self._pausing = self._pausing, None
        if pausing is None:
            return events
        paused = run_job(pausing)
        return [*events, *self._take(), *paused]  # who was let go was before the VM stood still

    def _take(self) -> list[Event]:
        """Take waiting events, and begin what they ask for."""
        events: list[Event] = [self._event(record) for record in self._loop.drain()]
        actions = {event.action for event in events}
        if Action.PAUSE in actions:
            self._pausing = self._pausing or self._pause()
        if Action.POISON in actions:
            events.extend(self._poison())
        return events + self._told_dropped()

    def _go_on_pausing(self) -> float | None:
        if self._pausing is None:
            return None
        try:
            return next(self._pausing)
        except BaseException as end:
            self._pausing = None
            if isinstance(end, StopIteration):
                self._untold += [*self._take(), *end.value]
                return None
            raise

    def held(self) -> list[Held]:
        """List the touches that are not answered yet: frozen, throttled, or waiting for us."""
        now_ns = time.monotonic_ns()
        return [
            Held(
                gpa=self._layout.to_gpa(held.span.start),
                size=held.span.size_bytes,
                vcpu=self._vcpus.number_of(held.tid),
                tid=held.tid,
                access=held.access,
                action=held.action,
                held_s=(now_ns - held.since_ns) / 1e9,
                left_s=(held.deadline_ns - now_ns) / 1e9 if held.deadline_ns else None,
            )
            for held in self._loop.parked()
        ]

    def release(self, tid: int | None) -> int:
        """Let a frozen thread go on, or all of them; return how many did.

        Raises UsageError for one that is not frozen.
        """
        released = self._loop.release(tid or 0)
        if tid is not None and not released:
            held = ", ".join(f"{held.tid} by {held.action.value}" for held in self._loop.parked())
            raise UsageError(
                f"thread {tid} is not frozen",
                why=f"held are: {held}" if held else "no thread is held",
                hint="give a --tid that is held by freeze, or none for all of them"
                if held
                else "nothing is to be done: the guest goes on",
            )
        return released

    def _on_events(self) -> bool:
        """Take a batch of events; there are more, until a batch is empty."""
        events = self._take()
        self._untold += events
        return bool(events)

    def _told_dropped(self) -> list[Notice]:
        """Say how many events came faster than they were taken: nobody will be told of those."""
        dropped = self._loop.stats().events_dropped
        count, self._dropped = dropped - self._dropped, dropped
        if not count:
            return []
        why = f"{count} event(s) came faster than the manager took them"
        return [notice(EventKind.MISSED, why, count=count)]

    def _event(self, record: TouchRecord) -> TouchEvent:
        kind = record.action if record.action is Action.NO_MEMORY else record.verdict
        gpa = self._layout.to_gpa(record.span.start)
        return TouchEvent(
            time_ns=record.time_ns,
            kind=EventKind(kind.value),
            gpa=gpa,
            gpa_hex=None if gpa is None else f"{gpa:#x}",
            size=record.span.size_bytes,
            vcpu=self._vcpus.number_of(record.tid),
            tid=record.tid,
            access=record.access,
            verdict=record.verdict,
            action=record.action,
            role=record.role,
            sequence=record.sequence,
            answer_ns=record.answer_ns,
            pid=self._origin.pid,
            vm=self._origin.vm,
        )

    def _pause(self) -> Job[list[Event]]:
        """Stop the VM, and again for touches that came to be held after the others were let go."""
        told: list[Event] = []
        while not told or self._held_for_pause():
            try:
                yield from self._machine.pausing(self._let_paused_go)
            except UffdballoonError as error:
                self._let_paused_go()
                return [*told, notice(EventKind.PAUSE_FAILED, str(error))]
            told.append(notice(EventKind.PAUSED))
        return told

    def _let_paused_go(self) -> None:
        for held in self._held_for_pause():
            self._loop.resolve(held, Resolution.GRANT)

    def _held_for_pause(self) -> list[ParkedTouch]:
        return [held for held in self._loop.parked() if held.action is Action.PAUSE]

    def _poison(self) -> list[Notice]:
        failures = []
        for held in self._loop.parked():
            if held.action is not Action.POISON:
                continue
            try:
                self._enforcer.poison(held)
            except UffdballoonError as error:
                self._loop.resolve(held, Resolution.GRANT)
                failures.append(notice(EventKind.POISON_FAILED, str(error)))
        return failures
