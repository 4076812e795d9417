# SPDX-License-Identifier: GPL-2.0-or-later
"""What a manager promises while it is busy: `status`, pauses and events in time.

Three loads: a ledger of millions of fragments, an inflate in scattered pages, and a storm of
violations. Each is measured with a manager of its own, whose longest turn is of that load alone.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.distribution import percentiles_us
from uffdballoon.bench.event_reader import EventReader
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.managed import managed
from uffdballoon.daemon import client
from uffdballoon.daemon.protocol import VERSION, encode
from uffdballoon.daemon.requests import MAX_RANGES
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.errors import LabError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange, round_up
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.changes import ChangeReport
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEFAULT_FRAGMENTS = 10_000_000
DEFAULT_INFLATE_BYTES = 1 << 30
DEFAULT_VIOLATIONS = 200_000
DEFAULT_ROUNDS = 200
_PAUSES = 20
_BELOW_BYTES = 64 << 20
_HIGH_GPA = 4 << 30
_GIVEN_UP_AT_ONCE = 1 << 15  # pages: fewer than would fill the trace's ring
_STRIDE_BYTES = 2 * PAGE_BYTES
_PATIENCE_S = 60.0
_LOOKS_S = 0.005
_APART_S = 0.02
_SEED = 0xB059


def run(
    *,
    fragments: int,
    inflate_bytes: int,
    violations: int,
    rounds: int,
    accel: Accel | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the three loads, each beside the same manager without it."""
    chosen = accel or (Accel.KVM if Path("/dev/kvm").exists() else Accel.TCG)
    series = [
        *_fragmented(chosen, fragments, rounds, progress),
        *_inflating(chosen, inflate_bytes, progress),
    ]
    storm, followers = _storm(chosen, violations, progress)
    series.append(storm)
    return {
        "machine": describe_machine(),
        "fragments": fragments,
        "filled_by": "the guest's own balloon queue, traced: every second page of 4 KiB",
        "inflate_bytes": inflate_bytes,
        "violations": violations,
        "followers": followers,
        "series": series,
        "ratios": _ratios(series),
    }


class _Asked:
    """Times `status` as a command asks for it, and counts the CPU time that it costs."""

    def __init__(self, pid: int, manager: int) -> None:
        self._pid = pid
        self._manager = manager
        self._took_ns: list[int] = []
        self._began_ns = _cpu_ns(manager)

    def ask(self) -> None:
        began_ns = time.monotonic_ns()
        client.status(self._pid)
        self._took_ns.append(time.monotonic_ns() - began_ns)

    def row(self, name: str, **more: object) -> dict[str, Any]:
        """Return what it took; the CPU time is all that the manager spent meanwhile."""
        cpu_ns = _cpu_ns(self._manager) - self._began_ns
        row = _row(f"status, {name}", self._took_ns, self._pid)
        return row | {"cpu_us": cpu_ns / len(self._took_ns) / 1e3} | more


def _row(name: str, took_ns: Sequence[int], pid: int) -> dict[str, Any]:
    loop = client.status(pid).loop
    assert loop
    times = percentiles_us(took_ns)
    return {
        "name": name,
        "samples": times.pop("samples"),
        **{f"{key}_us": value for key, value in times.items()},
        "longest_turn_us": loop.longest_turn_us,
    }


def _fragmented(
    accel: Accel, fragments: int, rounds: int, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield `status` of an empty balloon, and of one with so many single pages in it.

    The memory was never touched, so that a guest may be larger than the host.
    """
    arena = GpaRange.of(_HIGH_GPA, round_up(fragments * _STRIDE_BYTES, HUGE_BYTES))
    memory = Memory(size_bytes=arena.end, backing=Backing.ANON, reserve=False)
    with Qemu(QemuOptions(accel=accel, memory=memory)) as qemu:
        with managed(qemu, "--observer", "trace") as manager:
            yield _ask(qemu.pid, manager, rounds).row("empty balloon")
        with managed(qemu, "--observer", "trace") as manager:
            progress(f"the guest gives up {fragments:,} single pages")
            began_s = time.monotonic()
            for first in range(0, fragments, _GIVEN_UP_AT_ONCE):
                pages = min(_GIVEN_UP_AT_ONCE, fragments - first)
                start = arena.start + first * _STRIDE_BYTES
                span = GpaRange.of(start, pages * PAGE_BYTES)
                qemu.guest.balloon_inflate(span, stride_bytes=_STRIDE_BYTES)
                followed_bytes = (first + pages) * PAGE_BYTES
                _until(lambda: client.status(qemu.pid).ballooned_bytes == followed_bytes)  # noqa: B023
            fill_s = time.monotonic() - began_s
            progress(f"{rounds} times status")
            asked = _ask(qemu.pid, manager, rounds)
            yield asked.row(f"{fragments:,} fragments", fill_s=fill_s)


def _ask(pid: int, manager: int, rounds: int) -> _Asked:
    asked = _Asked(pid, manager)
    for _ in range(rounds):
        asked.ask()
    return asked


def _inflating(
    accel: Accel, size_bytes: int, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield how long violations wait for the pause of the VM, alone and during an inflate."""
    arena = GpaRange.of(_BELOW_BYTES, 2 * size_bytes)
    traps = GpaRange.of(arena.end, _PAUSES * PAGE_BYTES)
    memory = Memory(size_bytes=arena.end + _BELOW_BYTES)
    with Qemu(QemuOptions(accel=accel, memory=memory)) as qemu:
        for busy in (False, True):
            if busy:
                qemu.guest.fill(arena, _SEED, stride_bytes=PAGE_BYTES)
            with managed(qemu, "--policy", "pause") as manager:
                _inflate(qemu.pid, [traps])
                name = "during an inflate" if busy else "nothing else"
                progress(f"violations under pause, {name}")
                asked = _Asked(qemu.pid, manager)
                load = threading.Thread(target=_inflate_scattered, args=(qemu.pid, arena))
                if busy:
                    load.start()
                pauses = _Pauses(qemu, traps)
                while pauses.are_left and (load.is_alive() or not busy):
                    pauses.pause()
                    asked.ask()
                    time.sleep(_APART_S)
                while busy and load.is_alive():
                    asked.ask()
                    time.sleep(_APART_S)
                yield _row(f"violation to pause, {name}", pauses.took_ns(), qemu.pid)
                if busy:
                    yield asked.row(name)


class _Pauses:
    """Violations that pause the VM, one after the other; it goes on after each."""

    def __init__(self, qemu: Qemu, traps: GpaRange) -> None:
        self._qemu = qemu
        self._left = list(range(traps.start, traps.end, PAGE_BYTES))
        self._paused = 0

    @property
    def are_left(self) -> bool:
        return bool(self._left)

    def pause(self) -> None:
        span = GpaRange.of(self._left.pop(), PAGE_BYTES)
        touch = self._qemu.guest.start_touch(span, Access.WRITE)
        self._paused += 1
        _until(lambda: len(self.took_ns()) == self._paused)
        self._qemu.monitor.execute("cont")
        touch.wait()

    def took_ns(self) -> list[int]:
        """Return how long each violation was held until the VM was paused, by the events."""
        took, touched_ns = [], 0
        for event in client.recent_events(self._qemu.pid):
            if isinstance(event, TouchEvent):
                touched_ns = event.time_ns
            elif event.kind is EventKind.PAUSED:
                took.append(event.time_ns - touched_ns)
        return took


def _inflate(pid: int, spans: Sequence[GpaRange]) -> None:
    ranges = [[span.start, span.size_bytes] for span in spans]
    client.request(pid, "inflate", ChangeReport, guest_agreed=True, granule="4k", ranges=ranges)


def _inflate_scattered(pid: int, arena: GpaRange) -> None:
    """Take every second page, as many at once as a request may name."""
    starts = range(arena.start, arena.end, _STRIDE_BYTES)
    for first in range(0, len(starts), MAX_RANGES):
        some = starts[first : first + MAX_RANGES]
        _inflate(pid, [GpaRange.of(start, PAGE_BYTES) for start in some])


def _storm(
    accel: Accel, touches: int, progress: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `status` during a storm of violations, and what came of those who follow it.

    One follower reads, one hangs up in the middle, and one never reads.
    """
    arena = GpaRange.of(_BELOW_BYTES, touches * PAGE_BYTES)
    memory = Memory(size_bytes=round_up(arena.end, HUGE_BYTES) + _BELOW_BYTES)
    with (
        Qemu(QemuOptions(accel=accel, memory=memory)) as qemu,
        managed(qemu, "--policy", "observe") as manager,
    ):
        _inflate(qemu.pid, [arena])
        first = GpaRange.of(arena.start, PAGE_BYTES)
        rest = GpaRange.of(first.end, arena.size_bytes - PAGE_BYTES)
        qemu.guest.touch(first, Access.WRITE)
        with (
            EventReader(qemu.pid, touches) as reader,
            _following(qemu.pid) as leaver,
            _following(qemu.pid),
        ):
            progress(f"a storm of {touches:,} violations")
            asked = _Asked(qemu.pid, manager)
            began_s = time.monotonic()
            storm = qemu.guest.start_touch(rest, Access.WRITE)
            while not storm.is_there(_APART_S):
                asked.ask()
                leaver.close()
            storm_s = time.monotonic() - began_s
            asked.ask()
            row = asked.row(f"a storm of {touches:,} violations", storm_s=storm_s)
            followers: dict[str, Any] = {"reader": reader.wait()}
            state = client.status(qemu.pid)
    assert state.loop
    followers["never_reads"] = {"missed": state.loop.events_missed - followers["reader"]["missed"]}
    return row, followers | {
        "violations": state.touches.violations,
        "events_dropped": state.events_dropped,
        "failures": state.loop.failures,
    }


@contextlib.contextmanager
def _following(pid: int) -> Iterator[socket.socket]:
    """Follow, and read nothing but the first answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(pid)))
        connection.sendall(encode({"v": VERSION, "verb": "follow"}))
        connection.recv(1)
        yield connection


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise LabError("the manager does not get there", why=f"in {_PATIENCE_S:g} s")
        time.sleep(_LOOKS_S)


def _cpu_ns(pid: int) -> int:
    """Return the time that all threads of a process were on a CPU."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def _ratios(series: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Compare each load with the same question while nothing goes on."""
    alone: dict[str, dict[str, Any]] = {}
    ratios = {}
    for row in series:
        what = row["name"].partition(",")[0]
        if what not in alone:
            alone[what] = row
            continue
        for which in ("p50_us", "max_us"):
            ratios[f"{row['name']}: {which} vs alone"] = row[which] / alone[what][which]
    return ratios


HEADER = ("what", "how often", "p50 ms", "p99", "max", "manager's CPU, ms", "longest turn, ms")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            row["name"],
            str(row["samples"]),
            *(f"{row[key] / 1e3:.2f}" for key in ("p50_us", "p99_us", "max_us")),
            f"{row['cpu_us'] / 1e3:.2f}" if "cpu_us" in row else "",
            f"{row['longest_turn_us'] / 1e3:.1f}",
        )
        for row in result["series"]
    ]
