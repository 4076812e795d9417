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
from uffdballoon.lab.thp import FILLING_NOTHING, MOST_AGGRESSIVE, ThpTunings

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
        stack.enter_context(ThpTunings(FILLING_NOTHING))
        guests = {
            name: stack.enter_context(fragmented_guest(size_bytes, accel=accel))
            for name in (UNGUARDED, GUARDED)
        }
        guarded = guests[GUARDED].qemu
        stack.enter_context(managed(guarded, "--observer", "trace"))
        for name, guest in guests.items():
            progress(f"{name.replace('_', ' ')}: gives up half of {size_bytes >> 20} MiB")
            guest.give_up_half()
        _settle(guarded.pid)
        collapses = _collapses()
        watch = _Watch(guests)
        with ThpTunings(MOST_AGGRESSIVE):
            progress(f"khugepaged at its most aggressive, for {seconds:g} s")
            watch.go_on(seconds)
            state = client.status(guarded.pid)
        rows = [_row(name, guests[name], watch.series[name]) for name in guests]
    return {
        "machine": describe_machine(),
        "size_bytes": size_bytes,
        "ballooned_bytes": size_bytes // 2,
        "collapses": _collapses() - collapses,
        "full_scans": watch.full_scans,
        "eligible_blocks": state.khugepaged.eligible_blocks,
        "ballooned_resident_bytes": state.reclaim.resident_bytes,
        "series": rows,
        "ratios": {
            f"{row['name']}: came back / ballooned": row["grew_bytes"] / (size_bytes // 2)
            for row in rows
        },
    }


def _settle(pid: int) -> None:
    """Wait until the manager has nothing left to give back."""
    while client.status(pid).reclaim.pending_blocks:
        time.sleep(_SAMPLE_S)


class _Watch:
    """Resident bytes of guests over seconds; the first are of now, before khugepaged begins."""

    def __init__(self, guests: dict[str, FragmentedGuest]) -> None:
        self._guests = guests
        self._began, self._scans_before = time.monotonic(), _full_scans()
        self.series: dict[str, list[tuple[float, int]]] = {name: [] for name in guests}
        self._sample()

    @property
    def full_scans(self) -> int:
        """How often khugepaged has come round."""
        return _full_scans() - self._scans_before

    def go_on(self, seconds: float) -> None:
        """Sample for so long, and until khugepaged has looked at all there is.

        It is a thread of the lowest priority, which a busy host lets wait for seconds; without a
        look of it nothing would be shown.
        """
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0 or (
            self.full_scans < _FULL_SCANS and left_s > -_PATIENCE_S
        ):
            self._sample()
            time.sleep(_SAMPLE_S)

    def _sample(self) -> None:
        for name, guest in self._guests.items():
            rss = resident_bytes(guest.qemu.pid)
            self.series[name].append((time.monotonic() - self._began, rss))


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


HEADER = ("who", "ballooned, MiB", "Rss grew, MiB", "nine tenths back after, s")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            s["name"],
            str(result["ballooned_bytes"] >> 20),
            f"{s['grew_bytes'] / (1 << 20):.1f}",
            "never" if s["back_s"] is None else f"{s['back_s']:.1f}",
        )
        for s in result["series"]
    ]
