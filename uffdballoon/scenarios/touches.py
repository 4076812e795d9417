# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that touches what it gave up, under each rung of the ladder."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.touch import Access, Action
from uffdballoon.scenarios.stage import BALLOON, pages

if TYPE_CHECKING:
    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.scenarios.stage import Stage

_VALUE = 0xCAFE
_READS = 4
_WRITES = 4
_HOLD_MS = 200
_PAUSES = (EventKind.PAUSED, EventKind.PAUSE_FAILED)


def touch_after_inflate(stage: Stage) -> None:
    """Touch ballooned pages under every rung; what each promises is checked."""
    with_one_guest = (_observe, _zero_read, _throttle, _freeze, _timed_freeze, _pause)
    qemu = stage.start()
    for rung in with_one_guest:
        rung(stage, qemu)
    stage.check_owned(qemu.guest)
    for ending in (_poison, _kill):
        ending(stage, stage.start())


def _observe(stage: Stage, qemu: Qemu) -> None:
    with stage.attach(qemu, "observe") as session:
        stage.inflate(session)
        qemu.guest.write(BALLOON.start, _VALUE)
        stage.guest(f"wrote {_VALUE:#x} to its first ballooned page")
        stage.pump(session)
        (event,) = stage.events
        assert isinstance(event, TouchEvent)
        stage.host(f"saw {event.access.value} of gpa {event.gpa:#x} by vCPU {event.vcpu}")
        stage.promise(
            "observe: the touch is reported with page, vCPU and access",
            holds=(event.gpa, event.vcpu, event.access) == (BALLOON.start, 0, Access.WRITE),
        )
        kept = qemu.guest.read(BALLOON.start)
    stage.promise("observe: the page is granted and keeps what is written", holds=kept == _VALUE)


def _zero_read(stage: Stage, qemu: Qemu) -> None:
    with stage.attach(qemu, "zero-read,observe") as session:
        stage.inflate(session)
        qemu.guest.touch(pages(0, _READS), Access.READ)
        value = qemu.guest.read(BALLOON.start)
        stage.guest(f"read {_READS} ballooned pages; the first word is {value}")
        state = session.status()
        stage.promise("zero-read: reads give zeros", holds=value == 0)
        stage.promise(
            "zero-read: they cost the host no memory and the pages stay in the balloon",
            holds=state.ballooned_bytes == state.reclaimed_bytes == BALLOON.size_bytes,
        )


def _throttle(stage: Stage, qemu: Qemu) -> None:
    burst = 8
    with stage.attach(qemu, f"throttle=1/s:{burst},observe") as session:
        stage.inflate(session)
        qemu.guest.touch(pages(0, 3 * burst), Access.WRITE)
        stage.guest(f"wrote to {3 * burst} ballooned pages")
        actions = session.status().actions
        stage.host(f"throttle granted {actions[Action.THROTTLE]}, observe {actions[Action.GRANT]}")
        # A second may pass meanwhile, and grant one more.
        stage.promise(
            "throttle: its burst is granted, and what is beyond the rate goes to the next rung",
            holds=burst <= actions[Action.THROTTLE] < 2 * burst
            and actions[Action.THROTTLE] + actions[Action.GRANT] == 3 * burst,
        )


def _freeze(stage: Stage, qemu: Qemu) -> None:
    with stage.attach(qemu, "freeze") as session:
        stage.inflate(session)
        pending = qemu.guest.start_touch(pages(0, 1), Access.WRITE)
        stage.wait_for(session, "a frozen vCPU", lambda: bool(session.held()))
        (held,) = session.held()
        stage.host(f"vCPU {held.vcpu} (thread {held.tid}) is frozen at gpa {held.gpa:#x}")
        monitor_answers = qemu.monitor.execute("query-status")["running"] is True
        stage.promise("freeze: QEMU's monitor goes on answering", holds=monitor_answers)
        stage.promise("freeze: the guest is held", holds=not pending.is_there(0.1))
        released = session.release(held.tid)
        stage.finish(session, pending)
        pending.wait()
        stage.guest("went on")
        stage.promise("freeze: release lets it go on", holds=released == 1)
        pending = qemu.guest.start_touch(pages(1, 1), Access.WRITE)
        stage.wait_for(session, "a frozen vCPU", lambda: bool(session.held()))
    stage.host("detached with the vCPU still frozen")
    pending.wait()
    stage.promise("freeze: detaching lets it go on, too", holds=True)


def _timed_freeze(stage: Stage, qemu: Qemu) -> None:
    with stage.attach(qemu, f"freeze={_HOLD_MS}ms,observe") as session:
        stage.inflate(session)
        pending = qemu.guest.start_touch(pages(0, 1), Access.WRITE)
        stage.finish(session, pending)
        pending.wait()
        froze, granted = (event.time_ns for event in stage.events)
        stage.host(f"froze the vCPU for {(granted - froze) / 1e6:.0f} ms, then granted the page")
        stage.promise(
            f"freeze={_HOLD_MS}ms: after that long the next rung answers",
            holds=granted - froze >= _HOLD_MS * 1_000_000,
        )


def _pause(stage: Stage, qemu: Qemu) -> None:
    with stage.attach(qemu, "pause") as session:
        stage.inflate(session)
        pending = qemu.guest.start_touch(pages(0, 1), Access.WRITE)
        stage.wait_for(session, "the pause", lambda: any(e.kind in _PAUSES for e in stage.events))
        status = qemu.monitor.execute("query-status")["status"]
        granted = BALLOON.size_bytes - session.status().ballooned_bytes
        stage.host(f"the VM is {status}; {granted // PAGE_BYTES} page granted")
        stage.promise("pause: the VM is stopped, and the monitor works", holds=status == "paused")
        stage.promise("pause: one page was granted, no more", holds=granted == PAGE_BYTES)
        qemu.monitor.execute("cont")
        stage.finish(session, pending)
        pending.wait()
        stage.events.clear()
        pending = qemu.guest.start_touch(pages(1, 1), Access.WRITE)
        stage.wait_for(session, "the pause", lambda: any(e.kind in _PAUSES for e in stage.events))
        stage.promise("pause: it can be resumed, and is paused at its next violation", holds=True)
        qemu.monitor.execute("cont")
        stage.finish(session, pending)
        pending.wait()
        stage.guest("was resumed and went on")


def _poison(stage: Stage, qemu: Qemu) -> None:
    with stage.attach(qemu, "zero-read,poison") as session:
        stage.inflate(session)
        qemu.guest.touch(pages(0, 1), Access.READ)
        stage.promise("poison: reads still give zeros with zero-read before it", holds=True)
        pending = qemu.guest.start_touch(pages(0, 1), Access.WRITE)
        stage.finish(session, pending)
        stage.promise(
            "poison: the write is told as poisoned",
            holds=any(event.action is Action.POISON for event in stage.events),
        )
        status = qemu.wait_for_exit()
        stage.guest(f"its QEMU ended by {signal.Signals(-status).name}")
        # On a host whose KVM passes machine checks on, the guest would get one instead.
        stage.promise("poison: the guest hits broken memory", holds=-status == signal.SIGBUS)


def _kill(stage: Stage, qemu: Qemu) -> None:
    with stage.attach(qemu, "zero-read,kill") as session:
        stage.inflate(session)
        qemu.guest.touch(pages(0, 1), Access.READ)
        stage.promise("kill: reads still give zeros with zero-read before it", holds=True)
        qemu.guest.start_touch(pages(0, 1), Access.WRITE)
        status = qemu.wait_for_exit()
        stage.pump(session)
        stage.promise("kill: the first write ends the VM", holds=-status == signal.SIGKILL)
        stage.promise(
            "kill: the event that says why is there",
            holds=any(event.action is Action.KILL for event in stage.events),
        )


def read_then_write(stage: Stage) -> None:
    """Read ballooned pages, write to them later: the write must not go unseen."""
    qemu = stage.start()
    count = 256
    with stage.attach(qemu, "zero-read,observe") as session:
        stage.inflate(session)
        qemu.guest.touch(pages(0, count), Access.READ)
        stage.guest(f"read {count} ballooned pages and got zeros")
        before = session.status()
        qemu.guest.touch(pages(0, _WRITES), Access.WRITE)
        stage.guest(f"wrote to {_WRITES} of them")
        after = session.status()
        stage.host(
            f"violations: {before.touches.violations} reads, "
            f"{after.touches.violations - before.touches.violations} writes"
        )
        stage.promise("reads cost no memory", holds=before.reclaimed_bytes == BALLOON.size_bytes)
        stage.promise("every read is counted once", holds=before.touches.violations == count)
        stage.promise(
            "a write to a page that was read is trapped",
            holds=after.actions[Action.GRANT] == _WRITES,
        )
        stage.promise(
            "only the pages that were written to left the balloon",
            holds=after.ballooned_bytes == BALLOON.size_bytes - _WRITES * PAGE_BYTES,
        )
    stage.check_owned(qemu.guest)
