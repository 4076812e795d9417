# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest with fragmented memory: how far its balloon gets, and what it costs the guest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.lab.thp import FILLING_NOTHING, ThpTunings
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.fragmentation import KEEP_GUEST_PERFORMANCE, FragmentationLimit
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.lab.linux import PendingCommand
    from uffdballoon.lab.linux_qemu import LinuxQemu
    from uffdballoon.scenarios.stage import Stage

_RAM_BYTES = 768 << 20
_WANTED_BYTES = 192 << 20
_SCATTERED_BYTES = 384 << 20
_SLICE_MS = 1000
_SLICES = 5
_QUICK_SLICES = 2
_OVERSHOOT_BLOCKS = 32
"""Far more than the steps break that are under way, and far less than there are."""


@dataclass(frozen=True, slots=True)
class _Balloon:
    """How far a balloon got, and what it did to huge pages."""

    bytes: int
    lost_huge_pages: int
    broken_blocks: int
    state: ProgressState


def keep_guest_performance(stage: Stage) -> None:
    """Have a fragmented guest give memory up with --keep-guest-performance, and without."""
    with ThpTunings(FILLING_NOTHING):
        qemu = stage.start_linux(_RAM_BYTES)
        work = qemu.guest.talk(f"guestwork scatter {_SCATTERED_BYTES} {_SLICE_MS}")
        work.read_line()
        stage.guest(
            f"of {format_size(_SCATTERED_BYTES)} it works on every second page; the others are free"
        )
        _tell_speed(stage, work, "before any balloon")
        held = _inflate(stage, qemu, work, "with the flag", KEEP_GUEST_PERFORMANCE)
        free = _inflate(stage, qemu, work, "without it", None)
        stage.promise(
            "with the flag the driver is stopped, and without it it gets all that was asked for",
            holds=held.state is ProgressState.STOPPED and free.bytes == _WANTED_BYTES,
        )
        stage.promise(
            "with the flag no more huge pages are split than a step takes",
            holds=max(held.lost_huge_pages, held.broken_blocks) <= _OVERSHOOT_BLOCKS,
        )
        stage.promise("without it many are", holds=free.lost_huge_pages > 2 * _OVERSHOOT_BLOCKS)
        work.kill()


def _inflate(
    stage: Stage,
    qemu: LinuxQemu,
    work: PendingCommand,
    how: str,
    limit: FragmentationLimit | None,
) -> _Balloon:
    """Have the driver give memory up, as far as it may, and take all of it back."""
    huge_before = huge_bytes(qemu.pid)
    with stage.attach(qemu, "observe", fragmentation=limit) as session:
        session.ask_balloon(_RAM_BYTES - _WANTED_BYTES)
        stage.wait_for(
            session,
            "the driver's end",
            lambda: session.balloon_progress().state is not ProgressState.MOVING,
        )
        stage.settle(session)
        status = session.status()
        got = _Balloon(
            status.ballooned_bytes,
            (huge_before - huge_bytes(qemu.pid)) // HUGE_BYTES,
            status.fragmentation.broken_blocks,
            session.balloon_progress().state,
        )
        stage.host(
            f"{how}: {format_size(got.bytes)} of {format_size(_WANTED_BYTES)} are in the balloon "
            f"({got.state.value}); {got.broken_blocks} blocks of 2 MiB are broken, and "
            f"{got.lost_huge_pages} of {huge_before // HUGE_BYTES} huge pages are gone"
        )
        _tell_speed(stage, work, how)
        session.ask_balloon(_RAM_BYTES)
        stage.wait_for(
            session,
            "an empty balloon",
            lambda: session.balloon_progress().state is ProgressState.REACHED,
        )
        stage.settle(session)
    return got


def _tell_speed(stage: Stage, work: PendingCommand, when: str) -> None:
    """Tell the median speed of some slices, and see that nothing was lost."""
    measured, bad = [], 0
    for _ in range(_QUICK_SLICES if stage.quick else _SLICES):
        work.send_line()
        found = re.fullmatch(r"random_per_s=(\d+) bad=(\d+)", work.read_line())
        assert found is not None
        measured.append(int(found[1]))
        bad += int(found[2])
    median = sorted(measured)[len(measured) // 2]
    stage.guest(f"{when}: {median:,} random accesses a second")
    stage.promise(f"{when}: it lost no byte", holds=bad == 0)
