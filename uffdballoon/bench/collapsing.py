# SPDX-License-Identifier: GPL-2.0-or-later
"""How khugepaged fills a fragmented balloon again, and that it does not where it is armed."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.fragmented import fragmented_guest
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.managed import managed
from uffdballoon.daemon import client
from uffdballoon.lab.host_memory import huge_bytes, resident_bytes
from uffdballoon.lab.thp import MOST_AGGRESSIVE, ThpTunings

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.bench.fragmented import FragmentedGuest
    from uffdballoon.lab.qemu import Accel

DEFAULT_SIZE_BYTES = 256 << 20
DEFAULT_SECONDS = 60.0
_SAMPLE_S = 0.1
_FULL_SCANS = 2  # the first may have begun before there was anything to fill
_PATIENCE_S = 60.0
_MOST = 0.9
GUARDED, UNGUARDED = "with_guard", "without_guard"


def run(
    *, size_bytes: int, seconds: float, accel: Accel | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Watch the resident memory of two guests side by side, khugepaged at its most aggressive.

    Each has given up half of every huge page, page by page; one of them is held to it.
    """
    with contextlib.ExitStack() as stack:
        guests = {
            name: stack.enter_context(fragmented_guest(size_bytes, accel=accel))
            for name in (UNGUARDED, GUARDED)
        }
        guarded = guests[GUARDED].qemu
        stack.enter_context(managed(guarded, "--observer", "trace"))
        for name, guest in guests.items():
            progress(f"{name.replace('_', ' ')}: gives up half of {size_bytes >> 20} MiB")
            guest.give_up_half()
        before = _settled(guarded.pid)
        collapses = _collapses()
        with ThpTunings(MOST_AGGRESSIVE):
            progress(f"khugepaged at its most aggressive, for {seconds:g} s")
            series, full_scans = _watch(guests, seconds)
        after = client.request(guarded.pid, "status")
        rows = [_row(name, guests[name], series[name]) for name in guests]
    return {
        "machine": describe_machine(),
        "size_bytes": size_bytes,
        "ballooned_bytes": size_bytes // 2,
        "collapses": _collapses() - collapses,
        "full_scans": full_scans,
        "eligible_blocks": before["khugepaged"]["eligible_blocks"],
        "ballooned_resident_bytes": after["reclaim"]["resident_bytes"],
        "series": rows,
        "ratios": {
            f"{row['name']}: came back / ballooned": row["grew_bytes"] / (size_bytes // 2)
            for row in rows
        },
    }


def _settled(pid: int) -> dict[str, Any]:
    """Wait until the manager has nothing left to give back."""
    while True:
        state: dict[str, Any] = client.request(pid, "status")
        if not state["reclaim"]["pending_blocks"]:
            return state
        time.sleep(_SAMPLE_S)


def _watch(
    guests: dict[str, FragmentedGuest], seconds: float
) -> tuple[dict[str, list[tuple[float, int]]], int]:
    """Sample resident bytes for so long, and until khugepaged has looked at all there is.

    It is a thread of the lowest priority, which a busy host lets wait for seconds; without a
    look of it nothing would be shown. Also returns how often it has come round.
    """
    series: dict[str, list[tuple[float, int]]] = {name: [] for name in guests}
    began, scans_before = time.monotonic(), _full_scans()
    while (now := time.monotonic() - began) <= seconds or (
        _full_scans() - scans_before < _FULL_SCANS and now <= seconds + _PATIENCE_S
    ):
        for name, guest in guests.items():
            series[name].append((now, resident_bytes(guest.qemu.pid)))
        time.sleep(_SAMPLE_S)
    return series, _full_scans() - scans_before


def _row(name: str, guest: FragmentedGuest, samples: list[tuple[float, int]]) -> dict[str, Any]:
    first = samples[0][1]
    grew = max(rss for _, rss in samples) - first
    wanted = _MOST * guest.ballooned_bytes
    back = [s for s, rss in samples if rss - first >= wanted]
    return {
        "name": name,
        "grew_bytes": grew,
        "back_s": back[0] if back else None,
        "huge_bytes": huge_bytes(guest.qemu.pid),
        "bad_lines": guest.bad_lines(),
        "rss": [{"s": s, "bytes": rss} for s, rss in samples],
    }


def _full_scans() -> int:
    return int(Path("/sys/kernel/mm/transparent_hugepage/khugepaged/full_scans").read_text())


def _collapses() -> int:
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("thp_collapse_alloc "):
            return int(line.split()[1])
    return 0
