# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged, at its most aggressive, beside a balloon of 4k pieces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uffdballoon.lab.host_memory import huge_bytes, resident_bytes
from uffdballoon.lab.thp import FILLING_NOTHING, MOST_AGGRESSIVE, ThpTunings
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

_ARENA = GpaRange.of(64 << 20, 64 << 20)
_STRIDE_BYTES = 2 * PAGE_BYTES
_BALLOONED_BYTES = _ARENA.size_bytes // 2
_ENOUGH = 0.9
_SEED = 0xC0FFEE
_LONGER = 3.0  # than the other guest's memory took to come back
_LOOK_S = 0.05


def khugepaged_reinflation(stage: Stage) -> None:
    """Have khugepaged fill a balloon again, and not another one beside it."""
    before, after = stage.start(), stage.start()
    for qemu in (before, after):
        qemu.guest.fill(_ARENA, _SEED, stride_bytes=PAGE_BYTES)
    stage.host(
        f"{format_size(huge_bytes(before.pid))} and {format_size(huge_bytes(after.pid))} "
        "of the guests are huge pages"
    )
    with stage.attach(after, "zero-read,observe") as session:
        with ThpTunings(FILLING_NOTHING):
            for qemu in (before, after):
                _give_up_half(qemu)
            stage.settle(session)
            stage.guest(
                f"both gave up {format_size(_BALLOONED_BYTES)}: every second page of "
                f"{format_size(_ARENA.size_bytes)}"
            )
            _tell_reclaimed(stage, session)
            start = {qemu.pid: resident_bytes(qemu.pid) for qemu in (before, after)}
            with ThpTunings(MOST_AGGRESSIVE):
                grown = _watch(stage, session, before, start)
        stage.promise(
            "beside it, what was given up is back", holds=grown[before.pid] > _BALLOONED_BYTES // 2
        )
        stage.promise("of what is held to it nothing is back", holds=grown[after.pid] == 0)
        state = session.status()
        stage.host(
            f"khugepaged would have filled {state.khugepaged.eligible_blocks} blocks of 2 MiB"
        )
        stage.promise("all of it is still free", holds=_is_free(session))
        stage.promise(
            "no page is there that the ledger calls ballooned", holds=session.disagreements() == []
        )
        _take_half_back(after)
        stage.settle(session)
        _coverage_comes_back(stage, session, after)
    for qemu in (before, after):
        check = qemu.guest.verify(_ARENA, _SEED, stride_bytes=_STRIDE_BYTES)
        stage.promise("what the guest kept has its contents", holds=check.bad_lines == 0)
        stage.check_owned(qemu.guest)


def _give_up_half(qemu: Qemu) -> None:
    given = GpaRange.of(_ARENA.start + PAGE_BYTES, _BALLOONED_BYTES)
    qemu.guest.balloon_inflate(given, stride_bytes=_STRIDE_BYTES)


def _take_half_back(qemu: Qemu) -> None:
    given = GpaRange.of(_ARENA.start + PAGE_BYTES, _BALLOONED_BYTES)
    qemu.guest.balloon_deflate(given, stride_bytes=_STRIDE_BYTES)


def _is_free(session: Session) -> bool:
    state = session.status()
    return state.reclaimed_bytes == state.ballooned_bytes == _BALLOONED_BYTES


def _tell_reclaimed(stage: Stage, session: Session) -> None:
    state = session.status()
    stage.host(
        f"{format_size(state.reclaimed_bytes)} of {format_size(state.ballooned_bytes)} "
        f"are free, by {state.reclaimed_source}"
    )
    if state.reclaimed_source == "kpageflags":
        stage.promise("what is ballooned is free", holds=_is_free(session))


def _watch(stage: Stage, session: Session, before: Qemu, start: dict[int, int]) -> dict[int, int]:
    """Wait until the one is filled again, and a few times as long; return how each grew."""
    most = dict.fromkeys(start, 0)
    began = time.monotonic()

    def is_back() -> bool:
        for pid, rss in start.items():
            most[pid] = max(most[pid], resident_bytes(pid) - rss)
        time.sleep(_LOOK_S)
        return most[before.pid] > _ENOUGH * _BALLOONED_BYTES

    stage.wait_for(session, "khugepaged", is_back)
    took_s = time.monotonic() - began
    until = began + (1 + _LONGER) * took_s
    stage.wait_for(session, "the time", lambda: is_back() and time.monotonic() > until)
    held = max(rss for pid, rss in most.items() if pid != before.pid)
    stage.host(
        f"khugepaged: {format_size(most[before.pid])} were back after {took_s:.1f} s, "
        f"and {format_size(held)} of what is held to it after "
        f"{time.monotonic() - began:.1f} s"
    )
    return most


def _coverage_comes_back(stage: Stage, session: Session, qemu: Qemu) -> None:
    """After the deflate its windows are gone, and khugepaged may do its work again."""
    left = huge_bytes(qemu.pid)
    qemu.guest.fill(_ARENA, _SEED, stride_bytes=PAGE_BYTES)
    with ThpTunings(MOST_AGGRESSIVE):
        stage.wait_for(
            session,
            "huge pages after the deflate",
            lambda: huge_bytes(qemu.pid) - left >= _ENOUGH * _ARENA.size_bytes,
        )
    stage.host(f"deflated: huge pages went from {format_size(left)} to what they were")
    stage.promise("no window is left of what was deflated", holds=session.status().windows == 0)
