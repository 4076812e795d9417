# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast memory is zapped from outside, against a process that does it to itself."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from uffdballoon.balloon.zap_private import zap_private
from uffdballoon.balloon.zap_shared import zap_shared
from uffdballoon.bench.machine import describe_machine
from uffdballoon.lab.toucher import Toucher
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES
from uffdballoon.model.job import run_job
from uffdballoon.model.packed import PackedRanges
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injector import IdleThread, Injector
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.model.addresses import HvaRange

DEFAULT_ROUNDS = 5
_GIB = 1 << 30
_SHAPES = (
    ("4k, one run", "anon", PAGE_BYTES, PAGE_BYTES),
    ("4k, every second page", "anon", PAGE_BYTES, 2 * PAGE_BYTES),
    ("64k, every second", "anon", 16 * PAGE_BYTES, 32 * PAGE_BYTES),
    ("2M, every second", "anon", HUGE_BYTES, 2 * HUGE_BYTES),
    ("THP, one run", "thp", HUGE_BYTES, HUGE_BYTES),
    ("4k of THP, every second page", "thp", PAGE_BYTES, 2 * PAGE_BYTES),
    ("4k of memfd, every second page", "memfd", PAGE_BYTES, 2 * PAGE_BYTES),
)


def _ranges(span: HvaRange, size_bytes: int, stride_bytes: int) -> PackedRanges:
    if size_bytes == stride_bytes:
        return PackedRanges.of([span])
    return PackedRanges.strided(span, size_bytes, stride_bytes)


def _idle_thread(target: Target) -> IdleThread:
    """Take the thread that touches, which waits for work, for what RCU is to a QEMU."""
    return IdleThread(target.threads()[1].tid, "waiting thread", frozenset({arch.FUTEX}))


def _ours(
    toucher: Toucher, injector: Injector, backing: str, ranges: PackedRanges
) -> tuple[int, int]:
    """Zap from outside; return ns in all, and the longest stop of the process in ns."""
    if backing == "memfd":
        mapped = next(
            line.split()
            for line in open(f"/proc/{toucher.pid}/maps", encoding="utf-8")  # noqa: SIM115, PTH123
            if "memfd:toucher" in line
        )
        start, offset = int(mapped[0].split("-")[0], 16), int(mapped[2], 16)
        link = f"/proc/{toucher.pid}/map_files/{mapped[0]}"
        fd = os.open(link, os.O_RDWR | os.O_CLOEXEC)
        try:
            began_ns = time.monotonic_ns()
            zap_shared(fd, ranges.unpacked(), file_start=start - offset)
            return time.monotonic_ns() - began_ns, 0
        finally:
            os.close(fd)
    began_ns = time.monotonic_ns()
    report = run_job(zap_private(injector, ranges))
    return time.monotonic_ns() - began_ns, max(report.stops_ns, default=0)


def run(*, rounds: int, size_bytes: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Zap memory in several shapes; return pages/s and GiB/s, ours and the process's own."""
    series = []
    for name, backing, piece_bytes, stride_bytes in _SHAPES:
        progress(name)
        with (
            Toucher(backing, size_bytes, 1) as toucher,
            Target.open(toucher.pid, any_process=True) as target,
            Injector(target, _idle_thread(target)) as injector,
        ):
            ranges = _ranges(toucher.span, piece_bytes, stride_bytes)
            took: dict[str, list[int]] = {}
            stops_ns: list[int] = []
            for number in range(rounds + 1):
                toucher.fill()
                elapsed_ns, stop_ns = _ours(toucher, injector, backing, ranges)
                measured = {"uffdballoon": elapsed_ns}
                if backing != "memfd":
                    for how in ("madvise", "process_madvise"):
                        toucher.fill()
                        measured[how] = toucher.zap_by(how, piece_bytes, stride_bytes)
                if number:
                    stops_ns.append(stop_ns)
                    for how, value in measured.items():
                        took.setdefault(how, []).append(value)
        zapped_bytes = ranges.size_bytes
        for how, values in took.items():
            median_ns = sorted(values)[len(values) // 2]
            series.append(
                {
                    "shape": name,
                    "name": how,
                    "ranges": len(ranges),
                    "pages_per_s": round(zapped_bytes / PAGE_BYTES / (median_ns / 1e9)),
                    "gib_per_s": zapped_bytes / _GIB / (median_ns / 1e9),
                    "longest_stop_us": max(stops_ns) // 1000 if how == "uffdballoon" else None,
                }
            )
    return {
        "machine": describe_machine(),
        "size_bytes": size_bytes,
        "series": series,
        "ratios": _ratios(series),
    }


def _ratios(series: list[dict[str, Any]]) -> dict[str, float]:
    rate = {(row["shape"], row["name"]): row["gib_per_s"] for row in series}
    return {
        f"{shape}: ours vs {how}": rate[shape, "uffdballoon"] / value
        for (shape, how), value in rate.items()
        if how != "uffdballoon"
    }


HEADER = ("shape", "who", "ranges", "pages/s", "GiB/s", "longest stop, us")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            s["shape"],
            s["name"],
            str(s["ranges"]),
            str(s["pages_per_s"]),
            f"{s['gib_per_s']:.2f}",
            "-" if s["longest_stop_us"] is None else str(s["longest_stop_us"]),
        )
        for s in result["series"]
    ]
