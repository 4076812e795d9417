# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a fragmented balloon the host gets back, and how soon, by who sees to it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.fragmented import fragmented_guest
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.managed import managed
from uffdballoon.daemon import client
from uffdballoon.errors import LabError
from uffdballoon.lab.cgroup import MemoryCgroup
from uffdballoon.lab.host_memory import free_bytes, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.bench.fragmented import FragmentedGuest
    from uffdballoon.lab.qemu import Accel

DEFAULT_SIZE_BYTES = 1 << 30
WATCH_S = 2.0
"""After the guest was done: what is not back by then counts as not returned."""
ENOUGH = 0.95
_SAMPLE_S = 0.05
_WITH, _WITHOUT, _CGROUP = "with_reclaimer", "without_reclaimer", "cgroup"


class _Gauge:
    """What the host and the process had before, and what has changed since, in bytes."""

    def __init__(self, guest: FragmentedGuest, group: MemoryCgroup | None) -> None:
        self._guest, self._group = guest, group
        self._before = self._read()
        self.series: list[dict[str, float]] = []
        self._began = time.monotonic()

    def start_clock(self) -> None:
        """Count seconds from now on: what was sampled before lies before zero."""
        now = time.monotonic()
        for row in self.series:
            row["s"] += self._began - now
        self._began = now

    def sample(self) -> dict[str, float]:
        rss, free, charged = self._read()
        row: dict[str, float] = {
            "s": time.monotonic() - self._began,
            "rss_fell_bytes": self._before[0] - rss,
            "memfree_rose_bytes": free - self._before[1],
            "charge_fell_bytes": self._before[2] - charged,
        }
        self.series.append(row)
        return row

    def watch(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.sample()
            time.sleep(_SAMPLE_S)
        self.sample()

    def _read(self) -> tuple[int, int, int]:
        charged = self._group.charged_bytes() if self._group is not None else 0
        return resident_bytes(self._guest.qemu.pid), free_bytes(), charged


@contextlib.contextmanager
def _group_or_none(progress: Callable[[str], None]) -> Iterator[MemoryCgroup | None]:
    with contextlib.ExitStack() as stack:
        group: MemoryCgroup | None = None
        try:
            group = stack.enter_context(MemoryCgroup("bench"))
        except LabError as error:
            progress(f"{error.what}: {error.why}")
        yield group


def run(*, size_bytes: int, accel: Accel | None, progress: Callable[[str], None]) -> dict[str, Any]:
    """Have a guest give up half of each huge page, page by page; return what came back.

    ``reclaimed_bytes`` is what the cgroup around QEMU is charged less, two seconds after
    the guest was done; where there is no cgroup, what MemFree rose by. MemFree is told
    beside: everything else that the host does is in it, too.
    """
    result: dict[str, Any] = {"machine": describe_machine(), "size_bytes": size_bytes}
    for name in (_WITHOUT, _WITH, _CGROUP):
        progress(name.replace("_", " "))
        with (
            _group_or_none(progress) as group,
            fragmented_guest(size_bytes, accel=accel, watcher=group) as guest,
        ):
            if name == _CGROUP and group is None:
                result[name] = None
                continue
            result[name] = _measure(name, guest, group)
    result["ratios"] = {
        f"{name}: returned / ballooned": result[name]["reclaimed_ratio"]
        for name in (_WITH, _WITHOUT, _CGROUP)
        if result[name] is not None
    }
    return result


def _measure(name: str, guest: FragmentedGuest, group: MemoryCgroup | None) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if name == _WITH:
            stack.enter_context(managed(guest.qemu, "--observer", "trace"))
        gauge = _Gauge(guest, group)
        began = time.monotonic()
        guest.give_up_half()
        extra["inflate_s"] = time.monotonic() - began
        gauge.start_clock()
        if name == _CGROUP:
            assert group is not None
            way = group.ways()[0]
            extra |= {"way": way, "kernel_was_satisfied": group.squeeze(way, guest.ballooned_bytes)}
            group.relax()
        gauge.watch(WATCH_S)
        if name == _WITH:
            state = client.status(guest.qemu.pid)
            extra["status"] = {
                "observer": state.observer.value,
                "ballooned_bytes": state.ballooned_bytes,
                "reclaimed_bytes": state.reclaimed_bytes,
                "reclaim": asdict(state.reclaim) | {"mode": state.reclaim.mode.value},
            }
        extra["bad_lines"] = guest.bad_lines()
    return _row(guest, gauge.series, in_group=group is not None) | extra


def _row(
    guest: FragmentedGuest, series: list[dict[str, float]], *, in_group: bool
) -> dict[str, Any]:
    gauge = "charge_fell_bytes" if in_group else "memfree_rose_bytes"
    last, wanted = series[-1], ENOUGH * guest.ballooned_bytes
    enough = [row["s"] for row in series if row[gauge] >= wanted]
    return {
        "ballooned_bytes": guest.ballooned_bytes,
        "reclaimed_bytes": last[gauge],
        "reclaimed_ratio": last[gauge] / guest.ballooned_bytes,
        "seconds": enough[0] if enough else None,
        "measured_by": "cgroup" if in_group else "MemFree",
        "memfree_rose_bytes": last["memfree_rose_bytes"],
        "rss_fell_bytes": last["rss_fell_bytes"],
        "huge_before_bytes": guest.huge_bytes,
        "series": [
            {
                "s": row["s"],
                "reclaimed_bytes": row[gauge],
                "memfree_rose_bytes": row["memfree_rose_bytes"],
                "rss_fell_bytes": row["rss_fell_bytes"],
            }
            for row in series
        ],
    }


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table: who, then MiB by each gauge, and how soon."""
    table = []
    for name in (_WITHOUT, _WITH, _CGROUP):
        row = result[name]
        if row is None:
            continue
        table.append(
            (
                f"{name} ({row['way']})" if "way" in row else name,
                *(
                    str(round(row[key] / (1 << 20)))
                    for key in (
                        "ballooned_bytes",
                        "rss_fell_bytes",
                        "memfree_rose_bytes",
                        "reclaimed_bytes",
                    )
                ),
                f"{row['reclaimed_ratio']:.3f}",
                "never" if row["seconds"] is None else f"{row['seconds']:.2f}",
                f"{row['inflate_s']:.2f}",
            )
        )
    return table


HEADER = (
    "who",
    "ballooned, MiB",
    "Rss fell",
    "MemFree rose",
    "returned",
    "ratio",
    f"{ENOUGH:g} after, s",
    "inflate, s",
)
