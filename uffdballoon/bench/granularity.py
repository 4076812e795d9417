# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest loses of its speed when it gives half of its memory up, by size of the pieces."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.fragmented import fragmented_guest
from uffdballoon.bench.machine import describe_machine
from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.sizes import format_size
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.bench.fragmented import FragmentedGuest
    from uffdballoon.lab.qemu import Accel

DEFAULT_SIZE_BYTES = 512 << 20
DEFAULT_ROUNDS = 15
PIECES = {"4k": PAGE_BYTES, "thp": HUGE_BYTES}


def run(
    *, size_bytes: int, rounds: int, accel: Accel, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Have a guest read the memory that it keeps, before and after it gave up half of it.

    In pieces of 4k it gives up every second page, in pieces of 2 MiB the second half. It reads
    a line of each page: how fast that is hangs on the size of the host's pages.
    """
    series: list[dict[str, Any]] = []
    for name, piece_bytes in PIECES.items():
        progress(f"pieces of {name}")
        with fragmented_guest(size_bytes, accel=accel) as guest:
            series.append({"name": name, **_measure(guest, piece_bytes, rounds)})
    return {
        "machine": describe_machine(),
        "size_bytes": size_bytes,
        "ballooned_bytes": size_bytes // 2,
        "series": series,
        "ratios": {f"{row['name']}: speed kept": row["speed_kept"] for row in series},
    }


def _measure(guest: FragmentedGuest, piece_bytes: int, rounds: int) -> dict[str, Any]:
    kept = _Kept(guest, piece_bytes)
    kept.read(1)  # warms up
    before = kept.read(rounds)
    huge_before = huge_bytes(guest.qemu.pid)
    options = SessionOptions(
        pid=guest.qemu.pid, qmp_path=str(guest.qemu.qmp_path), policy=parse_policy("observe")
    )
    with Session(options) as session:
        kept.give_up_the_others()
        session.settle()
        huge_after = huge_bytes(guest.qemu.pid)
        kept.read(1)
        after = kept.read(rounds)
        state = session.status()
    gone_whole = guest.ballooned_bytes if piece_bytes == HUGE_BYTES else 0
    return {
        "seconds_before": statistics.median(before),
        "seconds_after": statistics.median(after),
        "speed_kept": statistics.median(before) / statistics.median(after),
        "rounds_before": before,
        "rounds_after": after,
        "huge_bytes_before": huge_before,
        "huge_bytes_after": huge_after,
        "split_bytes": huge_before - huge_after - gone_whole,
        "ballooned_bytes": state.ballooned_bytes,
        "reclaimed_bytes": state.reclaimed_bytes,
        "violations": state.touches.violations,
        "owned_intact": kept.is_as_it_was(),
    }


class _Kept:
    """What the guest keeps: the first of each two pages, or the first half of the blocks."""

    def __init__(self, guest: FragmentedGuest, piece_bytes: int) -> None:
        self._guest, self._micro = guest, guest.qemu.guest
        arena = guest.arena
        self._in_pages = piece_bytes == PAGE_BYTES
        self._span = arena if self._in_pages else GpaRange.of(arena.start, arena.size_bytes // 2)
        self._stride_bytes = (2 if self._in_pages else 1) * PAGE_BYTES
        self._sum = self._checksum()

    def read(self, rounds: int) -> list[float]:
        """Return the seconds that it takes to read a line of each page, for each round."""
        return [self._read_once() for _ in range(rounds)]

    def give_up_the_others(self) -> None:
        if self._in_pages:
            self._guest.give_up_half()
        else:
            self._micro.balloon_inflate(GpaRange.of(self._span.end, self._span.size_bytes))

    def is_as_it_was(self) -> bool:
        return self._checksum() == self._sum

    def _read_once(self) -> float:
        began = time.monotonic()
        self._checksum()
        return time.monotonic() - began

    def _checksum(self) -> int:
        return self._micro.checksum(self._span, stride_bytes=self._stride_bytes)


HEADER = ("pieces", "before ms", "after ms", "speed kept", "huge pages split")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            s["name"],
            f"{s['seconds_before'] * 1e3:.2f}",
            f"{s['seconds_after'] * 1e3:.2f}",
            f"{s['speed_kept']:.3f}",
            format_size(s["split_bytes"]),
        )
        for s in result["series"]
    ]
