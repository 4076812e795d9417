# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of a touch that several rungs answer: in order, and counted once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.life import Served
from tests.support.marks import REAL_QEMU
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.touch import Access, Action

if TYPE_CHECKING:
    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU

BALLOON = GpaRange.of(64 << 20, 1 << 20)
FIRST = GpaRange.of(BALLOON.start, PAGE_BYTES)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0xE4E


def test_a_pause_is_told_after_the_touch_that_it_let_go(qemu: Qemu) -> None:
    qemu.guest.fill(OWNED, SEED)
    with Served(qemu, "pause") as served:
        served.session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        touch = qemu.guest.start_touch(FIRST, Access.WRITE)
        served.wait_for(EventKind.STOPPED)
        qemu.monitor.execute("cont")
        touch.wait()
        served.wait_for(EventKind.RESUMED)
        told = [
            event.action.value if isinstance(event, TouchEvent) else event.kind.value
            for event in served.told
        ]
        ours = ["pause", "release", "paused"]
        assert [what for what in told if what in ours] == ours
    assert not qemu.guest.verify(OWNED, SEED).bad_lines


def test_a_touch_that_is_frozen_for_a_time_is_told_at_each_rung_and_counted_once(
    qemu: Qemu,
) -> None:
    with Served(qemu, "freeze=100ms,observe") as served:
        served.session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        qemu.guest.touch(FIRST, Access.WRITE)
        served.serve()
        touches = [event for event in served.told if isinstance(event, TouchEvent)]
        assert [event.action for event in touches] == [Action.FREEZE, Action.GRANT]
        assert {event.gpa for event in touches} == {FIRST.start}
        assert served.violations == 1


def test_a_reset_is_told_once(qemu: Qemu) -> None:
    with Served(qemu) as served:
        served.session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        qemu.monitor.execute("system_reset")
        served.wait_for(EventKind.RESET)
        served.serve()
        # On a busy host SeaBIOS may find itself begun already, and resets once more.
        for event in served.told:
            if event.kind is EventKind.RESET:
                qemu.monitor.wait_for_event("RESET")
