# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that comes back at once, and stays away from khugepaged: a guest on huge pages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import run
from tests.support.marks import REAL_QEMU
from uffdballoon.errors import UffdballoonError
from uffdballoon.host.process import Advice, process_madvise
from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.lab.thp import MOST_AGGRESSIVE, ThpTunings
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, GpaRange, HvaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.ram import Backing
from uffdballoon.model.reclaiming import DEFAULT_RATE_BYTES_PER_S, Reclaiming
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

ARENA = GpaRange.of(64 << 20, 32 << 20)
HALF = GpaRange.of(ARENA.start + PAGE_BYTES, ARENA.size_bytes // 2)
STRIDE = 2 * PAGE_BYTES
SEED = 0x4EC1
_THP = Path("/sys/kernel/mm/transparent_hugepage")
_PATIENCE_S = 60.0


def attach(
    qemu: Qemu,
    reclaiming: Reclaiming = Reclaiming.NOW,
    rate_bytes_per_s: int = DEFAULT_RATE_BYTES_PER_S,
) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            reclaiming=reclaiming,
            reclaim_rate_bytes_per_s=rate_bytes_per_s,
        )
    )


def owned_is_whole(qemu: Qemu) -> bool:
    return qemu.guest.verify(ARENA, SEED, stride_bytes=STRIDE).bad_lines == 0


def hva_of(session: Session, span: GpaRange) -> HvaRange:
    return session.layout.to_hva(span)[0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def guest(accel: Accel, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=accel, memory=Memory(size_bytes=160 << 20)))
    qemu.guest.fill(ARENA, SEED, stride_bytes=PAGE_BYTES)
    assert huge_bytes(qemu.pid) >= ARENA.size_bytes
    return qemu


def test_what_the_guest_gives_up_in_pieces_is_free_at_once(guest: Qemu) -> None:
    with attach(guest) as session:
        guest.guest.balloon_inflate(HALF, stride_bytes=STRIDE)
        session.settle()
        state = session.status()
        assert state.ballooned_bytes == state.reclaimed_bytes == HALF.size_bytes
        assert state.reclaimed_source == "kpageflags"
        assert state.broken_blocks == ARENA.size_bytes // HUGE_BYTES
        assert state.reclaim.freed_bytes == HALF.size_bytes
        assert state.reclaim.failed_blocks == 0
        assert session.verify().disagreements == ()
        assert owned_is_whole(guest)
    assert owned_is_whole(guest)


def test_left_to_the_kernel_it_is_kept_and_told(guest: Qemu) -> None:
    with attach(guest, Reclaiming.KERNEL) as session:
        guest.guest.balloon_inflate(HALF, stride_bytes=STRIDE)
        session.settle()
        state = session.status()
        assert state.ballooned_bytes == HALF.size_bytes
        assert state.reclaimed_bytes < HALF.size_bytes
        assert state.reclaim.pinned_bytes > 0
        assert state.reclaim.split_blocks == 0
        assert owned_is_whole(guest)


def test_a_direct_inflate_is_free_and_other_huge_pages_stay(guest: Qemu) -> None:
    with attach(guest) as session:
        huge = huge_bytes(guest.pid)
        piece = GpaRange.of(ARENA.start + 5 * PAGE_BYTES, 3 * PAGE_BYTES)
        session.inflate(piece, Granule.SMALL, guest_agreed=True)
        session.settle()
        state = session.status()
        assert state.reclaimed_bytes == state.ballooned_bytes == piece.size_bytes
        assert huge_bytes(guest.pid) == huge - HUGE_BYTES
        assert state.reclaim.split_blocks == 1
        assert owned_is_whole_but(guest, piece)


def owned_is_whole_but(qemu: Qemu, piece: GpaRange) -> bool:
    parts = (GpaRange(ARENA.start, piece.start), GpaRange(piece.end, ARENA.end))
    return all(
        qemu.guest.verify(part, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0 for part in parts
    )


def test_a_rate_is_kept_to_and_gets_there(guest: Qemu) -> None:
    with attach(guest, rate_bytes_per_s=64 << 20) as session:
        guest.guest.balloon_inflate(HALF, stride_bytes=STRIDE)
        began = time.monotonic()
        split = []
        while session.status().reclaimed_bytes < HALF.size_bytes:
            assert time.monotonic() - began < _PATIENCE_S
            session.keep_up()
            split.append((time.monotonic() - began, session.status().reclaim.split_blocks))
            time.sleep(0.02)
        # 32 blocks a second, and what was saved up before.
        assert all(blocks <= 32 * (s + 0.5) + 4 for s, blocks in split)
        assert owned_is_whole(guest)


@pytest.mark.alone
@pytest.mark.needs_kvm
def test_nothing_fills_what_is_armed(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.KVM, memory=Memory(size_bytes=160 << 20)))
    qemu.guest.fill(ARENA, SEED, stride_bytes=PAGE_BYTES)
    with ThpTunings(MOST_AGGRESSIVE), attach(qemu) as session:
        # khugepaged is at work already: what it fills before a window is there is emptied.
        qemu.guest.balloon_inflate(HALF, stride_bytes=STRIDE)
        session.settle()
        wait_until(lambda: not session.settle() and free(session))
        state = session.status()
        assert state.khugepaged.eligible_blocks == ARENA.size_bytes // HUGE_BYTES
        assert state.khugepaged.unguarded_blocks == 0
        assert state.ballooned_bytes == HALF.size_bytes
        for start in range(ARENA.start, ARENA.end, HUGE_BYTES):
            block = hva_of(session, GpaRange.of(Gpa(start), HUGE_BYTES))
            with pytest.raises(UffdballoonError):
                process_madvise(session.target.pidfd, [block], Advice.COLLAPSE)
        assert free(session)
        assert session.verify().disagreements == ()
        qemu.guest.touch(HALF_FIRST, Access.WRITE)
        assert session.status().touches.violations == 1
        qemu.guest.balloon_deflate(HALF, stride_bytes=STRIDE)
        session.settle()
        qemu.guest.fill(ARENA, SEED, stride_bytes=PAGE_BYTES)
        assert session.status().windows == 0
        wait_until(lambda: huge_bytes(qemu.pid) >= ARENA.size_bytes)
        assert owned_is_whole(qemu)


HALF_FIRST = GpaRange.of(HALF.start, PAGE_BYTES)


def free(session: Session) -> bool:
    state = session.status()
    return bool(state.reclaimed_bytes == state.ballooned_bytes > 0)


@pytest.mark.alone
def test_shared_memory_is_not_collapsed_either(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    memory = Memory(size_bytes=160 << 20, backing=Backing.MEMFD, share=True)
    with ThpTunings({**MOST_AGGRESSIVE, "shmem_enabled": "advise"}):
        qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
        qemu.guest.fill(ARENA, SEED, stride_bytes=PAGE_BYTES)
        with attach(qemu) as session:
            qemu.guest.balloon_inflate(HALF, stride_bytes=STRIDE)
            session.settle()
            for start in range(ARENA.start, ARENA.end, HUGE_BYTES):
                block = hva_of(session, GpaRange.of(Gpa(start), HUGE_BYTES))
                with pytest.raises(UffdballoonError):
                    process_madvise(session.target.pidfd, [block], Advice.COLLAPSE)
            assert free(session)
            qemu.guest.touch(HALF_FIRST, Access.WRITE)
            assert session.status().touches.violations == 1
            assert owned_is_whole(qemu)


@pytest.mark.alone
def test_tunings_are_put_back_by_whoever_is_killed() -> None:
    before = (_THP / "khugepaged" / "scan_sleep_millisecs").read_text()
    code = (
        "import sys, time; from uffdballoon.lab.thp import *\n"
        "with ThpTunings({'khugepaged/scan_sleep_millisecs': '4321'}):\n"
        "    print('set', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as tuner:
        assert tuner.stdout is not None
        assert tuner.stdout.readline() == b"set\n"
        assert (_THP / "khugepaged" / "scan_sleep_millisecs").read_text() == "4321\n"
        os.kill(tuner.pid, signal.SIGKILL)
    wait_until(lambda: (_THP / "khugepaged" / "scan_sleep_millisecs").read_text() == before)


def test_doctor_says_how_the_tunings_stand() -> None:
    done = run("doctor")
    assert "khugepaged: max_ptes_none" in done.stdout
