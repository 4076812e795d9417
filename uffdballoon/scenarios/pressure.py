# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that touch all they can, and two vCPUs that want the same page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Access
from uffdballoon.scenarios.stage import BALLOON

if TYPE_CHECKING:
    from uffdballoon.scenarios.stage import Stage

STORM_TOUCHES = 100_000
RACES = 10_000
_QUICK = 10  # of these, a tenth
_MEMORY_GROWTH_BYTES = 1 << 20  # what allocators do by themselves


def _manager_bytes() -> int:
    """Return our own resident memory, without the pages of files."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def violation_storm(stage: Stage) -> None:
    """Touch 100,000 ballooned pages without a pause: all are counted, the manager stays small."""
    touches = STORM_TOUCHES // (_QUICK if stage.quick else 1)
    storm = GpaRange.of(BALLOON.start, touches * PAGE_BYTES)
    tenth = GpaRange.of(storm.start, storm.size_bytes // 10)
    qemu = stage.start(memory_bytes=512 << 20)
    with stage.attach(qemu, "observe") as session:
        stage.inflate(session, storm)
        qemu.guest.touch(tenth, Access.WRITE)
        before = _manager_bytes()
        qemu.guest.touch(GpaRange(tenth.end, storm.end), Access.WRITE)
        grown = _manager_bytes() - before
        stage.guest(f"wrote to {touches} ballooned pages; nobody took an event meanwhile")
        state = session.status()
        stage.pump(session)
        taken, dropped = len(stage.events), state.events_dropped
        latency = state.latency_ns
        stage.host(
            f"counted {state.touches.violations}, told {taken}, dropped {dropped}; "
            f"answer p50 {latency.p50 / 1000:.1f} us, p99 {latency.p99 / 1000:.1f} us; "
            f"manager grew by {grown // 1024} KiB"
        )
        stage.promise(
            "each of them is counted",
            holds=state.touches.violations == touches,
        )
        stage.promise(
            "events are dropped only with a count of how many",
            holds=taken + dropped == touches,
        )
        stage.promise("the manager's memory is flat", holds=grown < _MEMORY_GROWTH_BYTES)
        stage.promise("all was granted, as observe says", holds=state.ballooned_bytes == 0)
    stage.check_owned(qemu.guest)


def greedy_guest(stage: Stage) -> None:
    """Take back all that one can under `cap`: the floor holds."""
    floor_bytes = BALLOON.size_bytes * 3 // 4
    terms = Terms(kind=ContractKind.CAP, floor_bytes=floor_bytes)
    allowed_bytes = BALLOON.size_bytes - floor_bytes
    qemu = stage.start()
    with stage.attach(qemu, "zero-read,freeze", terms) as session:
        stage.inflate(session)
        pending = qemu.guest.start_touch(BALLOON, Access.WRITE)
        stage.guest(f"writes to all {format_size(BALLOON.size_bytes)} of its balloon")
        stage.wait_for(session, "a frozen vCPU", lambda: bool(session.held()))
        state = session.status()
        stage.host(
            f"{state.touches.granted} grants of a page or a block; "
            f"{format_size(state.ballooned_bytes)} are left in the balloon; the vCPU is frozen"
        )
        taken_bytes = BALLOON.size_bytes - state.ballooned_bytes
        stage.promise("what is above the floor is granted", holds=taken_bytes == allowed_bytes)
        stage.promise(
            f"the floor of {format_size(floor_bytes)} holds",
            holds=state.ballooned_bytes == floor_bytes and not state.contract.below_floor,
        )
        stage.promise("the guest is held at the floor", holds=not pending.is_there(0.1))
        session.deflate(BALLOON, Granule.SMALL)
        stage.host("gave all of it back")
        stage.finish(session, pending)
        pending.wait()
        stage.guest("went on")
        stage.promise("memory given back lets it go on", holds=session.held() == [])
    stage.check_owned(qemu.guest)


def two_vcpus_one_page(stage: Stage) -> None:
    """Have two vCPUs write to the same page at the same moment, 10,000 times."""
    races = RACES // (_QUICK if stage.quick else 1)
    arena = GpaRange.of(BALLOON.start, races * PAGE_BYTES)
    qemu = stage.start(memory_bytes=256 << 20, processors=2)
    with stage.attach(qemu, "observe") as session:
        stage.inflate(session, arena)
        race = qemu.guest.race(arena, Access.WRITE)
        stage.guest(f"both vCPUs wrote to each of {race.count} pages; {race.bad} words were lost")
        stage.pump(session)
        touches = session.status().touches
        by_vcpu = [sum(event.vcpu == cpu for event in stage.events) for cpu in (0, 1)]
        stage.host(
            f"{touches.violations} violations (vCPU 0: {by_vcpu[0]}, vCPU 1: {by_vcpu[1]}), "
            f"{touches.ordinary} touches came right after the grant"
        )
        stage.promise(
            "every page is a violation once, by whoever was first",
            holds=touches.violations == race.count == races,
        )
        stage.promise(
            "the other one's touch is counted once at most",
            holds=touches.ordinary <= races and sum(by_vcpu) == races,
        )
        stage.promise("nobody is left waiting", holds=session.held() == [])
        stage.promise("no word is lost", holds=race.bad == 0)
    with stage.attach(qemu, "zero-read,observe") as session:
        stage.inflate(session, arena)
        race = qemu.guest.race(arena, Access.READ)
        stage.pump(session)
        state = session.status()
        stage.guest(f"both vCPUs read each of {race.count} pages; {race.bad} saw different values")
        stage.host(f"{state.touches.violations} reads trapped, all answered with zeros")
        stage.promise(
            "each vCPU's read is counted once at most, and each page at least once",
            holds=races <= state.touches.violations <= 2 * races,
        )
        stage.promise(
            "no page left the balloon, and none costs memory",
            holds=state.ballooned_bytes == state.reclaimed_bytes == arena.size_bytes,
        )
    stage.check_owned(qemu.guest)
