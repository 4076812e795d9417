# SPDX-License-Identifier: GPL-2.0-or-later
"""What it takes to plan the windows of very large guests, and to look a page up in them."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.reference import scatter, time_lookups, time_planning
from uffdballoon.core.ledger import Ledger
from uffdballoon.model.addresses import PAGE_BYTES, Hva
from uffdballoon.model.ram import Backing, RamBlock

if TYPE_CHECKING:
    from collections.abc import Callable

_TIB = 1 << 40
_START = Hva(1 << 45)
_BUDGET = 16_384  # half of the mappings that a process may have, two a window
_CHANGES = 10_000
_LOOKUPS = 2_000_000
_LOCAL_BYTES = 64 << 30


@dataclass(frozen=True, slots=True)
class _Guest:
    size_bytes: int
    fragments: int
    seed: int  # 0: at an even stride

    @property
    def name(self) -> str:
        how = "at random" if self.seed else "evenly"
        return f"{self.size_bytes // _TIB} TiB, {self.fragments:,} fragments {how}"


_GUESTS = (
    _Guest(_TIB, 100_000, 1),
    _Guest(_TIB, 100_000, 0),
    _Guest(_TIB, 10_000_000, 1),
    _Guest(16 * _TIB, 1_000_000, 1),
    _Guest(16 * _TIB, 4_000_000, 0),
    _Guest(16 * _TIB, 10_000_000, 1),
)


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm").read_text().split()
    return int(statm[1]) * os.sysconf("SC_PAGE_SIZE")


def _measure(guest: _Guest) -> dict[str, Any]:
    before = _resident_bytes()
    block = RamBlock("ram", _START, guest.size_bytes, PAGE_BYTES, Backing.ANON, shared=False)
    ledger = Ledger([block])
    began_ns = time.monotonic_ns()
    pages = scatter(ledger, guest.fragments, guest.seed)
    scatter_ns = time.monotonic_ns() - began_ns
    ledger_bytes = _resident_bytes() - before
    times = time_planning(ledger, _BUDGET, _CHANGES)
    return {
        "name": guest.name,
        "ballooned_pages": pages,
        "ledger_bytes": ledger_bytes,
        "total_bytes": ledger_bytes + times.memory_bytes,
        "set_ns_per_page": scatter_ns / guest.fragments,
        **asdict(times),
        "lookup_ns": time_lookups(ledger, _LOOKUPS, dependent=False),
        "lookup_dependent_ns": time_lookups(ledger, _LOOKUPS, dependent=True),
        "lookup_local_ns": time_lookups(ledger, _LOOKUPS, span_bytes=_LOCAL_BYTES, dependent=True),
    }


def run(*, progress: Callable[[str], None]) -> dict[str, Any]:
    """Simulate guests of 1 TiB and 16 TiB; return times, memory and windows."""
    series = []
    for guest in _GUESTS:
        progress(guest.name)
        series.append(_measure(guest))
    large = series[2]
    return {
        "machine": describe_machine(),
        "budget": _BUDGET,
        "series": series,
        "ratios": {
            "1 TiB, 10 million: memory of 96 MiB": large["total_bytes"] / (96 << 20),
            "1 TiB, 10 million: windows of the budget": large["most_windows"] / _BUDGET,
            "1 TiB, 10 million: change of 1 ms": large["change_max_ns"] / 1e6,
            "1 TiB, 10 million: from scratch of 2 s": large["scratch_ns"] / 2e9,
            "16 TiB: look-up of 50 ns": series[-1]["lookup_ns"] / 50,
        },
    }


HEADER = (
    "guest",
    "from scratch, ms",
    "change p50, us",
    "max",
    "windows",
    "MiB",
    "look-up, ns",
    "dependent",
    "in 64 GiB",
)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            s["name"],
            f"{s['scratch_ns'] / 1e6:.1f}",
            f"{s['change_p50_ns'] / 1e3:.1f}",
            f"{s['change_max_ns'] / 1e3:.1f}",
            str(s["most_windows"]),
            f"{s['total_bytes'] / (1 << 20):.1f}",
            *(f"{s[f'lookup{kind}_ns']:.1f}" for kind in ("", "_dependent", "_local")),
        )
        for s in result["series"]
    ]
