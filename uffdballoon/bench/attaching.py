# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom attaching and zapping stop, for how long, and what QEMU's monitor notices of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from uffdballoon.balloon.zap_private import zap_private
from uffdballoon.bench.distribution import percentiles_us
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.watching import Watcher
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.job import run_job
from uffdballoon.model.packed import PackedRanges
from uffdballoon.session import look_at
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.threads import find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.balloon.report import ZapReport
    from uffdballoon.model.addresses import HvaRange

DEFAULT_ROUNDS = 200
_ZAPS = 5
_ARENA_GPA = 64 << 20

_GIB = 1 << 30
_SEED = 0xA77AC4


class _Attaches:
    """Attaches and detaches: pin it, find the thread, obtain a userfaultfd, close it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.obtains_ns: list[int] = []
        self.stops_ns: list[int] = []
        self.main_stops = 0
        self.methods: set[str] = set()

    def repeat(self, rounds: int) -> None:
        for _ in range(rounds):
            began_ns = time.monotonic_ns()
            with Target.open(self._pid) as target, _injector(target) as injector:
                obtained = obtain_userfaultfd(injector)
                obtained.uffd.close()
                self.main_stops += injector.main_stops
            self.obtains_ns.append(time.monotonic_ns() - began_ns)
            self.stops_ns.append(obtained.stopped_ns)
            self.methods.add(obtained.method)


class _Zaps:
    """Scattered zaps of memory that the guest has filled."""

    def __init__(self, qemu: Qemu, injector: Injector, arena: GpaRange, span: HvaRange) -> None:
        self._qemu = qemu
        self._arena = arena
        self._injector = injector
        self.ranges = PackedRanges.strided(span, PAGE_BYTES, 2 * PAGE_BYTES)
        self.reports: list[ZapReport] = []
        self.took_ns: list[int] = []

    def fill(self) -> None:
        self._qemu.guest.fill(self._arena, _SEED, stride_bytes=PAGE_BYTES)

    def zap(self) -> None:
        began_ns = time.monotonic_ns()
        self.reports.append(run_job(zap_private(self._injector, self.ranges)))
        self.took_ns.append(time.monotonic_ns() - began_ns)

    def rest(self) -> None:
        """Do nothing for as long as the last zap took."""
        time.sleep(self.took_ns[-1] / 1e9)


def run(
    *, guests: Sequence[Accel], rounds: int, size_bytes: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure each guest, and return the result in the shape of ``bench attach --json``."""
    series = [_measure(accel, rounds, size_bytes, progress) for accel in guests]
    return {"machine": describe_machine(), "series": series, "ratios": _ratios(series)}


def _measure(
    accel: Accel, rounds: int, size_bytes: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    arena = GpaRange.of(_ARENA_GPA, size_bytes)
    memory = Memory(size_bytes=arena.end + (64 << 20))
    options = QemuOptions(accel=accel, memory=memory)
    with Qemu(options) as qemu, Target.open(qemu.pid) as target, _injector(target) as injector:
        layout, facts, _ = look_at(target, str(qemu.qmp_path))
        assert facts is not None
        names = {injector.tid: "rcu", qemu.pid: "main"}
        names |= {tid: f"vcpu{number}" for number, tid in enumerate(facts.vcpu_tids)}
        attaches = _Attaches(qemu.pid)
        zaps = _Zaps(qemu, injector, arena, layout.to_hva(arena)[0])
        with Watcher("traced", str(qemu.pid)) as watcher:
            progress(f"QEMU under {accel.value}: {rounds} attaches and detaches")
            seen_attaching = watcher.during(lambda: attaches.repeat(rounds))
            progress(f"QEMU under {accel.value}: zaps of {size_bytes >> 21} MiB in pages of 4k")
            zaps.fill()
            seen_zapping = watcher.during(zaps.zap)
        qmp = _round_trips(qemu, zaps)
    return {
        "name": f"qemu-{accel.value}",
        "attaches": rounds,
        "methods": sorted(attaches.methods),
        "main_stops": attaches.main_stops + injector.main_stops,
        "seen_attaching": _named(seen_attaching, names),
        "seen_zapping": _named(seen_zapping, names),
        "stop_us": percentiles_us(attaches.stops_ns),
        "obtain_us": percentiles_us(attaches.obtains_ns),
        "zap": _describe(zaps),
        "qmp_us": {name: percentiles_us(taken) for name, taken in qmp.items()},
    }


def _round_trips(qemu: Qemu, zaps: _Zaps) -> dict[str, list[int]]:
    """Time round trips of the monitor during zaps and during rests of their length, in turns."""
    taken: dict[str, list[int]] = {"resting": [], "zapping": []}
    with Watcher("qmp", str(qemu.qmp_path)) as watcher:
        for _ in range(_ZAPS):
            zaps.fill()
            taken["resting"] += watcher.during(zaps.rest)
            taken["zapping"] += watcher.during(zaps.zap)
    return taken


def _describe(zaps: _Zaps) -> dict[str, Any]:
    """Describe all zaps but the first, which another process watched."""
    reports, took_ns = zaps.reports[1:], sorted(zaps.took_ns[1:])
    stops_ns = [stop for report in reports for stop in report.stops_ns]
    return {
        "zaps": len(reports),
        "size_bytes": zaps.ranges.size_bytes,
        "ranges": len(zaps.ranges),
        "gib_per_s": zaps.ranges.size_bytes / _GIB / (took_ns[len(took_ns) // 2] / 1e9),
        "stops": len(stops_ns),
        "stop_us": percentiles_us(stops_ns),
    }


def _named(seen: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """Name the threads that were seen with a tracer; 0 is told of those that were not."""
    traced = dict.fromkeys(names.values(), 0)
    for tid, count in seen["traced"].items():
        name = names.get(int(tid), "others")
        traced[name] = traced.get(name, 0) + count
    return {"looks": seen["looks"], "traced": traced}


def _ratios(series: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        f"{row['name']}: QMP {which}, zapping vs resting": row["qmp_us"]["zapping"][which]
        / row["qmp_us"]["resting"][which]
        for row in series
        for which in ("p50", "p99")
    }


def _injector(target: Target) -> Injector:
    return Injector(target, find_rcu_thread(target).thread)


HEADER = ("guest", "what", "how often", "main stops", "seen traced", "p50 us", "p99", "max")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    lines = []
    for row in result["series"]:
        attaching, zapping = (_seen(row[f"seen_{what}"]) for what in ("attaching", "zapping"))
        main_stops = str(row["main_stops"])
        for what, values, main, seen in (
            ("attach: stop of the RCU thread", row["stop_us"], main_stops, attaching),
            ("attach: all of it", row["obtain_us"], "", ""),
            ("zap: stop of the RCU thread", row["zap"]["stop_us"], main_stops, zapping),
            ("QMP round trip, resting", row["qmp_us"]["resting"], "", ""),
            ("QMP round trip, zapping", row["qmp_us"]["zapping"], "", ""),
        ):
            times = (f"{values[key]:.0f}" for key in ("p50", "p99", "max"))
            lines.append((row["name"], what, str(values["samples"]), main, seen, *times))
    return lines


def _seen(seen: dict[str, Any]) -> str:
    traced = ", ".join(f"{name} {count}" for name, count in seen["traced"].items())
    return f"{traced} of {seen['looks']}"
