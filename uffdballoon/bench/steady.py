# SPDX-License-Identifier: GPL-2.0-or-later
"""What enforcement costs a Linux guest that keeps its word, and an idle one its host."""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.following import reach, settled
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.managed import managed, voluntary_switches
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Memory, QemuOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.linux import PendingCommand

DEFAULT_ROUNDS = 6
DEFAULT_IDLE_S = 30.0
_RAM_BYTES = 1 << 30
_BALLOON_BYTES = 512 << 20
_WORK_BYTES = 128 << 20
_SLICE_MS = 500
_SLICES = 4
_KEYS = ("sequential_bytes_per_s", "random_per_s")


def run(*, rounds: int, idle_s: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure a loop on memory that the guest owns, enforced and not, taking turns.

    In both the guest has given half of its memory up; enforced, all of that is trapped.
    """
    rates: dict[str, dict[str, list[float]]] = {
        who: {key: [] for key in _KEYS} for who in ("not attached", "enforced")
    }
    coverage: dict[str, list[int]] = {"not attached": [], "enforced": []}
    options = QemuOptions(memory=Memory(size_bytes=_RAM_BYTES))
    with LinuxQemu(options) as qemu:
        work = qemu.guest.talk(f"guestwork bench {_WORK_BYTES} 0 {_SLICE_MS} thp")
        work.read_line()  # ready
        _measure(work, _SLICES, {key: [] for key in _KEYS})  # warms up
        windows = violations = 0
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            with managed(qemu):
                reach(qemu, _RAM_BYTES - _BALLOON_BYTES)
                settled(qemu.pid)
                before = huge_bytes(qemu.pid)
                _measure(work, _SLICES, rates["enforced"])
                state = settled(qemu.pid)
                windows, violations = state.windows, state.touches.violations
                coverage["enforced"].append(huge_bytes(qemu.pid) - before)
            before = huge_bytes(qemu.pid)
            _measure(work, _SLICES, rates["not attached"])
            coverage["not attached"].append(huge_bytes(qemu.pid) - before)
            reach(qemu, _RAM_BYTES)
        work.kill()
        idle = _idle(qemu, idle_s, progress)
    series = [
        {
            "name": who,
            **{key: statistics.median(values) for key, values in found.items()},
            "huge_bytes_change": coverage[who],
            "slices": found,
        }
        for who, found in rates.items()
    ]
    enforced, alone = rates["enforced"], rates["not attached"]
    return {
        "machine": describe_machine(),
        "balloon_bytes": _BALLOON_BYTES,
        "series": series,
        "windows": windows,
        "violations": violations,
        "idle": idle,
        "ratios": {
            f"{key}: enforced vs not attached": statistics.median(enforced[key])
            / statistics.median(alone[key])
            for key in _KEYS
        },
    }


def _measure(work: PendingCommand, slices: int, into: dict[str, list[float]]) -> None:
    for _ in range(slices):
        work.send_line()
        told = dict(re.findall(r"(\w+)=(\S+)", work.read_line()))
        for key, values in into.items():
            values.append(float(told[key]))


def _idle(qemu: LinuxQemu, idle_s: float, progress: Callable[[str], None]) -> dict[str, Any]:
    progress(f"idle for {idle_s:g} s")
    with managed(qemu) as manager:
        reach(qemu, _RAM_BYTES - _BALLOON_BYTES)
        settled(qemu.pid)
        time.sleep(3)  # the last of what settled() asked for
        before = voluntary_switches(manager)
        time.sleep(idle_s)
        switches = voluntary_switches(manager) - before
        reach(qemu, _RAM_BYTES)
    return {"seconds": idle_s, "voluntary_switches": switches}


def huge_bytes(pid: int) -> int:
    """Sum up the anonymous huge pages of a process (smaps_rollup)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(
        int(kib) << 10 for kib in re.findall(r"^AnonHugePages:\s+(\d+) kB", text, re.MULTILINE)
    )


HEADER = ("guest", "sequential GiB/s", "random M/s", "change of huge pages, bytes")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            s["name"],
            f"{s['sequential_bytes_per_s'] / (1 << 30):.3f}",
            f"{s['random_per_s'] / 1e6:.3f}",
            str(max(map(abs, s["huge_bytes_change"]))),
        )
        for s in result["series"]
    ]
