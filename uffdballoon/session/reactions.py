# SPDX-License-Identifier: GPL-2.0-or-later
"""Touches that the fault loop tells of: made into events, and those held for us seen to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uffdballoon.core.fault_loop import Resolution
from uffdballoon.errors import UffdballoonError
from uffdballoon.model.notice import notice
from uffdballoon.model.part import Source, Tick
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.records.status import Held
from uffdballoon.model.touch import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.core.fault_loop import TouchRecord
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

    def sources(self) -> Sequence[Source]:
        return (Source("events", self._loop.event_fileno(), self._on_events),)

    def tick(self) -> Tick:
        """Tell what was taken; the other parts see to what the touches have changed."""
        told, self._untold = self._untold, []
        return Tick(told, others_s=_TIDY_AFTER_S if told else None)

    def drain(self) -> list[Event]:
        """Take waiting events, and do what they ask for; an empty drain arms the eventfd."""
        events: list[Event] = [self._event(record) for record in self._loop.drain()]
        actions = {event.action for event in events}
        if Action.PAUSE in actions:
            events.extend(self._pause())
        if Action.POISON in actions:
            events.extend(self._poison())
        return events + self._told_dropped()

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

    def _on_events(self) -> bool:
        """Take a batch of events; there are more, until a batch is empty."""
        events = self.drain()
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
        return TouchEvent(
            time_ns=record.time_ns,
            kind=EventKind(kind.value),
            gpa=self._layout.to_gpa(record.span.start),
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

    def _pause(self) -> list[Notice]:
        def let_go() -> None:
            for held in self._loop.parked():
                if held.action is Action.PAUSE:
                    self._loop.resolve(held, Resolution.GRANT)

        try:
            self._machine.pause(let_go)
        except UffdballoonError as error:
            return [notice(EventKind.PAUSE_FAILED, str(error))]
        return [notice(EventKind.PAUSED)]

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
