# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's balloon that breaks huge pages is stopped at a limit, and one that does not is not."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from msgspec import UNSET

from tests.support.command import COMMAND, attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from uffdballoon.errors import RangeError, UsageError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.fragmentation import KEEP_GUEST_PERFORMANCE, FragmentationLimit
from uffdballoon.model.granule import Granule
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.records.events import Event, EventKind, Notice
from uffdballoon.model.records.memory import Fragmentation
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.hugepages import HugePagePool

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
OWNED = GpaRange.of(32 << 20, 1 << 20)
ARENA = GpaRange.of(64 << 20, 64 << 20)
LEFT = RAM_BYTES - ARENA.size_bytes
SEED = 0xF4A6
_PATIENCE_S = 60.0


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=RAM_BYTES)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


def attach(qemu: Qemu, limit: FragmentationLimit) -> Session:
    return Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path), fragmentation=limit))


def first_pages(blocks: int) -> GpaRange:
    """Return what, with a stride of a block, is the first page of so many blocks."""
    return GpaRange.of(ARENA.start, blocks * PAGE_BYTES)


def told(events: list[Event]) -> list[Notice]:
    notices = [event for event in events if isinstance(event, Notice)]
    return [event for event in notices if event.kind is EventKind.FRAGMENTATION_LIMIT]


def serve_until_stopped(session: Session) -> list[Notice]:
    """Serve until the inflate was stopped; return what was told of it."""
    events: list[Event] = []
    deadline = time.monotonic() + _PATIENCE_S
    while session.status().fragmentation.stopped_at_bytes is None:
        assert time.monotonic() < deadline
        events += session.settle()
    return told(events)


def serve_until_judged(session: Session) -> list[Notice]:
    """Serve until what the guest gave up was looked at for good; return what was told."""
    events: list[Event] = []
    deadline = time.monotonic() + _PATIENCE_S
    events += session.settle()
    while session.attached.guard.is_pending:
        assert time.monotonic() < deadline
        events += session.settle()
    return told(events)


def targets_of(qemu: Qemu) -> tuple[int, int]:
    """Return what the guest's balloon is asked to hold, and holds, in bytes."""
    words = dict(word.split("=") for word in qemu.guest.command("balloon target").split() if word)
    return int(words["target"], 16) * PAGE_BYTES, int(words["actual"], 16) * PAGE_BYTES


def test_whole_blocks_are_not_stopped_though_each_is_broken_for_a_moment(qemu: Qemu) -> None:
    qemu.guest.fill(OWNED, SEED)
    with attach(qemu, KEEP_GUEST_PERFORMANCE) as session:
        session.ask_balloon(LEFT)
        qemu.guest.balloon_inflate(ARENA, together=64)
        assert serve_until_judged(session) == []
        assert session.balloon_progress().state is ProgressState.REACHED
        state = session.status()
        assert state.ballooned_bytes == ARENA.size_bytes
        assert state.fragmentation == Fragmentation(
            limit_blocks=0,
            min_order=9,
            counted_blocks=0,
            broken_blocks=0,
            whole_blocks=ARENA.size_bytes // HUGE_BYTES,
            untouched_blocks=(RAM_BYTES - ARENA.size_bytes) // HUGE_BYTES,
            stopped_at_bytes=None,
        )
        assert targets_of(qemu) == (ARENA.size_bytes, ARENA.size_bytes)
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_fragmenting_guest_is_stopped_at_what_it_has_reached(qemu: Qemu) -> None:
    qemu.guest.fill(OWNED, SEED)
    with attach(qemu, FragmentationLimit(max_broken_blocks=3)) as session:
        session.ask_balloon(LEFT)
        qemu.guest.balloon_inflate(first_pages(32), stride_bytes=HUGE_BYTES, together=1)
        (event,) = serve_until_stopped(session)
        assert event.limit_blocks == 3
        assert event.broken_blocks is not UNSET
        assert 3 < event.broken_blocks <= 32
        reached = session.status().fragmentation.stopped_at_bytes
        assert reached is not None
        assert RAM_BYTES - 32 * PAGE_BYTES <= reached < RAM_BYTES
        progress = session.balloon_progress()
        assert progress.state is ProgressState.STOPPED
        assert "broken" in progress.why
        serve_until_judged(session)
        target, actual = targets_of(qemu)
        assert target == actual == 32 * PAGE_BYTES
        assert session.ask_balloon(LEFT).state is ProgressState.STOPPED
        assert targets_of(qemu)[0] == target  # it was asked for nothing
        qemu.guest.balloon_deflate(first_pages(32), stride_bytes=HUGE_BYTES)
        session.settle()
        assert session.ask_balloon(LEFT).state is ProgressState.MOVING
        assert session.status().fragmentation.stopped_at_bytes is None
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_guest_is_asked_for_more_once_what_it_gave_up_has_broken_nothing(tcg: Qemu) -> None:
    with attach(tcg, KEEP_GUEST_PERFORMANCE) as session:
        session.ask_balloon(LEFT)
        given_bytes, targets = 0, []
        deadline = time.monotonic() + _PATIENCE_S
        while session.balloon_progress().state is not ProgressState.REACHED:
            assert time.monotonic() < deadline
            target = targets_of(tcg)[0]
            if target > given_bytes:
                targets.append(target >> 20)
                more = GpaRange.of(ARENA.start + given_bytes, target - given_bytes)
                tcg.guest.balloon_inflate(more, together=64)
                given_bytes = target
            assert told(session.settle()) == []
        assert targets == [2, 6, 14, 30, 62, 64]
        assert session.status().ballooned_bytes == ARENA.size_bytes
        assert session.status().fragmentation.broken_blocks == 0
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_guest_that_obeys_breaks_no_more_than_a_first_step_can(tcg: Qemu) -> None:
    with attach(tcg, KEEP_GUEST_PERFORMANCE) as session:
        session.ask_balloon(LEFT)
        events: list[Event] = []
        first = targets_of(tcg)[0]
        assert first == HUGE_BYTES
        # Half of each block, as a driver that finds but pieces: the first step has two of them.
        half = GpaRange.of(ARENA.start, first // 2)
        for number in range(2):
            tcg.guest.balloon_inflate(GpaRange.of(half.start + number * HUGE_BYTES, first // 2))
        blocks = 2
        deadline = time.monotonic() + _PATIENCE_S
        while session.status().fragmentation.stopped_at_bytes is None:
            assert time.monotonic() < deadline
            events += session.settle()
            target, actual = targets_of(tcg)
            if target > actual:
                tcg.guest.balloon_inflate(
                    GpaRange.of(half.start + blocks * HUGE_BYTES, min(first // 2, target - actual))
                )
                blocks += 1
        assert len(told(events)) == 1
        # Up to eight blocks may be under way, and the step in which they are too many is let in.
        assert 0 < session.status().fragmentation.broken_blocks <= 10
        assert targets_of(tcg)[0] <= 10 * HUGE_BYTES
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_few_blocks_over_the_limit_are_found_once_it_is_quiet(tcg: Qemu) -> None:
    with attach(tcg, KEEP_GUEST_PERFORMANCE) as session:
        session.ask_balloon(LEFT)
        tcg.guest.balloon_inflate(first_pages(2), stride_bytes=HUGE_BYTES)
        (event,) = serve_until_stopped(session)
        assert event.broken_blocks == 2
        assert event.actual_bytes == RAM_BYTES - 2 * PAGE_BYTES


def test_a_block_that_the_balloon_has_grown_past_counts_before_it_is_quiet(tcg: Qemu) -> None:
    with attach(tcg, KEEP_GUEST_PERFORMANCE) as session:
        session.ask_balloon(LEFT)
        tcg.guest.balloon_inflate(first_pages(1), stride_bytes=HUGE_BYTES)
        rest = GpaRange.of(ARENA.start + HUGE_BYTES, ARENA.size_bytes - HUGE_BYTES)
        pending = tcg.guest.start(
            f"balloon inflate {rest.start:x} {rest.size_bytes // PAGE_BYTES:x} {PAGE_BYTES:x} 8"
        )
        events = serve_until_stopped(session)
        pending.wait()
        assert [event.limit_blocks for event in events] == [0]
        assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_pieces_of_the_order_that_is_asked_for_break_nothing(tcg: Qemu) -> None:
    pieces = GpaRange.of(ARENA.start, 16 * PAGE_BYTES)
    with attach(tcg, FragmentationLimit(min_order=4)) as session:
        tcg.guest.balloon_inflate(pieces)
        assert serve_until_judged(session) == []
        state = session.status().fragmentation
        assert (state.broken_blocks, state.counted_blocks) == (1, 0)
        tcg.guest.balloon_inflate(GpaRange.of(pieces.end, PAGE_BYTES))
        assert len(serve_until_stopped(session)) == 1


def test_the_operator_may_not_break_more_either(tcg: Qemu) -> None:
    page = GpaRange.of(ARENA.start, PAGE_BYTES)
    with attach(tcg, FragmentationLimit(max_broken_blocks=1)) as session:
        session.inflate(page, Granule.SMALL, guest_agreed=True)
        both = GpaRange.of(ARENA.start + HUGE_BYTES - PAGE_BYTES, 2 * PAGE_BYTES)
        with pytest.raises(RangeError, match="break 1 more"):
            session.inflate(both, Granule.SMALL, guest_agreed=True)
        assert session.status().ballooned_bytes == PAGE_BYTES
        block = GpaRange.of(ARENA.start, HUGE_BYTES)
        session.inflate(block, Granule.SMALL, guest_agreed=True)  # mends the one
        session.inflate(GpaRange.of(block.end, PAGE_BYTES), Granule.SMALL, guest_agreed=True)
        state = session.status()
        assert state.broken_blocks == state.fragmentation.broken_blocks == 1
        (of_block,) = state.ram_blocks
        assert (of_block.broken, of_block.whole, of_block.untouched) == (1, 1, 94)
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_pages_of_hugetlbfs_cannot_be_broken(
    start_qemu: Callable[[QemuOptions], Qemu], huge_pages: HugePagePool
) -> None:
    assert huge_pages.free() >= 64
    memory = Memory(size_bytes=128 << 20, backing=Backing.HUGETLBFS, share=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    with attach(qemu, KEEP_GUEST_PERFORMANCE) as session:
        span = GpaRange.of(ARENA.start, 4 * HUGE_BYTES)
        session.inflate(span, Granule.HUGE2M, guest_agreed=True)
        state = session.status().fragmentation
        assert (state.broken_blocks, state.whole_blocks) == (0, 4)


def test_a_limit_without_a_monitor_is_refused(tcg: Qemu) -> None:
    with pytest.raises(UsageError, match="monitor"):
        Session(SessionOptions(pid=tcg.pid, fragmentation=KEEP_GUEST_PERFORMANCE))
    none = ("--qmp", "none")
    assert "--qmp" in refused(2, "attach", tcg.pid, "--keep-guest-performance", *none)
    refused(2, "attach", tcg.pid, "--keep-guest-performance", "--max-broken", "3")
    refused(2, "attach", tcg.pid, "--max-broken", "many")
    tcg.guest.ping()


def test_set_tells_that_it_was_stopped_and_why(tcg: Qemu) -> None:
    with attached(tcg, "--max-broken", "4M", "--min-order", "9"):
        asked = subprocess.Popen(
            [COMMAND, "set", str(tcg.pid), "--balloon", str(LEFT), "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + _PATIENCE_S
        while not targets_of(tcg)[0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        tcg.guest.balloon_inflate(first_pages(3), stride_bytes=HUGE_BYTES)
        progress = json.loads(asked.communicate(timeout=_PATIENCE_S)[0])
        assert asked.returncode == 1
        assert progress["state"] == "stopped"
        assert "2 are allowed" in progress["why"]
        state = status_of(tcg)["fragmentation"]
        assert (state["limit_blocks"], state["broken_blocks"]) == (2, 3)
        assert state["stopped_at_bytes"] == RAM_BYTES - 3 * PAGE_BYTES
        assert "stopped with" in run("status", tcg.pid).stdout
        assert "fragmentation-limit" in run("events", tcg.pid).stdout
        done = run("set", tcg.pid, "--balloon", LEFT)
        assert done.returncode == 1
        assert "stopped" in done.stderr
        page = ("--gpa", hex(ARENA.end), "--size", "4K", "--guest-agreed")
        assert "--granule thp" in refused(2, "inflate", tcg.pid, *page)
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0
