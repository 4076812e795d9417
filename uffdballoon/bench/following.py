# SPDX-License-Identifier: GPL-2.0-or-later
"""What following the balloon of a Linux guest costs it: inflate and deflate, by observer."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.managed import managed
from uffdballoon.daemon import client
from uffdballoon.errors import LabError
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Memory, QemuOptions
from uffdballoon.model.records.balloon import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.model.records.status import Status

NOBODY = "nobody"
DEFAULT_ROUNDS = 5
_RAM_BYTES = 1 << 30
_POLL_S = 0.005
_PATIENCE_S = 300.0
_OPTIONS = {
    "trace": ("--observer", "trace"),
    "monitor": ("--observer", "monitor"),
    "event": ("--observer", "event", "--contract", "cap", "--floor", "0"),
    "scan": ("--observer", "scan", "--contract", "cap", "--floor", "0"),
}
_EXACT = ("trace", "monitor")
OBSERVERS = tuple(_OPTIONS)


def run(
    *,
    observers: Sequence[str],
    size_bytes: int,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Time inflates and deflates of ``size_bytes``, the observers and nobody taking turns.

    The guest has touched that memory before, so that there is something to give up.
    """
    contenders = [NOBODY, *observers]
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    seen: dict[str, dict[str, Any]] = {}
    with LinuxQemu(QemuOptions(memory=Memory(size_bytes=_RAM_BYTES))) as qemu:
        for number in range(rounds + 1):
            for turn in range(len(contenders)):
                name = contenders[(number + turn) % len(contenders)]
                progress(f"round {number} of {rounds}, {name}")
                times, state = _cycle(qemu, name, size_bytes)
                if number:  # the first warms up
                    took[name].append(times)
                    seen[name] = state
    series = [
        {
            "name": name,
            "rounds": rounds,
            "inflate_s": statistics.median(times[0] for times in took[name]),
            "deflate_s": statistics.median(times[1] for times in took[name]),
            "inflates_s": [times[0] for times in took[name]],
            "deflates_s": [times[1] for times in took[name]],
            **seen[name],
        }
        for name in contenders
    ]
    return {
        "machine": describe_machine(),
        "size_bytes": size_bytes,
        "series": series,
        "ratios": _ratios(took),
    }


def _ratios(took: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Compare medians, and as a check the fastest of each."""
    ratios = {}
    for name, times in took.items():
        if name == NOBODY:
            continue
        for index, what in enumerate(("inflate", "deflate")):
            alone = [pair[index] for pair in took[NOBODY]]
            mine = [pair[index] for pair in times]
            ratios[f"{what}: {name} vs {NOBODY}"] = statistics.median(mine) / statistics.median(
                alone
            )
            ratios[f"{what}: {name} vs {NOBODY}, fastest"] = min(mine) / min(alone)
    return ratios


def _cycle(
    qemu: LinuxQemu, name: str, size_bytes: int
) -> tuple[tuple[float, float], dict[str, Any]]:
    qemu.guest.check(f"guestwork hog {size_bytes}", _PATIENCE_S)
    with contextlib.ExitStack() as attached:
        if name != NOBODY:
            attached.enter_context(managed(qemu, *_OPTIONS[name]))
        inflate_s = reach(qemu, _RAM_BYTES - size_bytes)
        state = _agreement(qemu, name) if name != NOBODY else {}
        deflate_s = reach(qemu, _RAM_BYTES)
        if name in _EXACT:
            state["left_in_ledger_bytes"] = settled(qemu.pid).ballooned_bytes
    return (inflate_s, deflate_s), state


def reach(qemu: LinuxQemu, size_bytes: int) -> float:
    """Have the guest left with that much; return the seconds that it took."""
    began = time.monotonic()
    qemu.monitor.execute("balloon", value=size_bytes)
    while qemu.monitor.balloon_bytes() != size_bytes:
        if time.monotonic() - began > _PATIENCE_S:
            raise LabError(
                "the guest does not reach the size it was asked for",
                why=f"it has {qemu.monitor.balloon_bytes()} bytes after {_PATIENCE_S:g} s",
            )
        time.sleep(_POLL_S)
    return time.monotonic() - began


def settled(pid: int) -> Status:
    """Wait until the manager has followed to the end; return its status."""
    before = -1
    while True:
        state = client.status(pid)
        if state.ballooned_bytes == before:
            return state
        before = state.ballooned_bytes
        time.sleep(1.5)  # longer than the period of the scan


def _agreement(qemu: LinuxQemu, name: str) -> dict[str, Any]:
    state = settled(qemu.pid)
    verified = client.request(qemu.pid, "verify", Verification)
    return {
        "observer": name,
        "unaccounted_bytes": verified.unaccounted_bytes,
        "disagreements": len(verified.disagreements),
        "violations": state.touches.violations,
        "windows": state.windows,
        "lost_records": state.observed.lost_records,
        "arm_us_max": state.observed.arm_us_max,
    }


HEADER = (
    "observer",
    "inflate s",
    "deflate s",
    "lost records",
    "arming at most us",
    "unaccounted",
    "disagreements",
)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            s["name"],
            f"{s['inflate_s']:.2f}",
            f"{s['deflate_s']:.2f}",
            *(
                str(s.get(key, "-"))
                for key in ("lost_records", "arm_us_max", "unaccounted_bytes", "disagreements")
            ),
        )
        for s in result["series"]
    ]
