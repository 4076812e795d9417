# SPDX-License-Identifier: GPL-2.0-or-later
"""Many latencies as a few numbers."""

from __future__ import annotations

import array
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEPS_PER_DECADE = 20


@dataclass(slots=True)
class Distribution:
    """Latencies in ns, and the time in which they came about."""

    samples: array.array[int] = field(default_factory=lambda: array.array("I"))
    elapsed_ns: int = 0

    def add(self, samples: array.array[int], elapsed_ns: int) -> None:
        self.samples.extend(samples)
        self.elapsed_ns += elapsed_ns

    def summary(self) -> dict[str, Any]:
        """Return percentiles, the rate, and a histogram of [largest ns, count] by log steps."""
        ordered = sorted(self.samples)

        def percentile(permille: int) -> int:
            return ordered[min(len(ordered) - 1, len(ordered) * permille // 1000)]

        return {
            "samples": len(ordered),
            "p50_ns": percentile(500),
            "p90_ns": percentile(900),
            "p99_ns": percentile(990),
            "p999_ns": percentile(999),
            "max_ns": ordered[-1],
            "faults_per_s": round(len(ordered) * 1e9 / max(self.elapsed_ns, 1)),
            "histogram": _histogram(ordered),
        }


def _histogram(ordered: list[int]) -> list[list[int]]:
    counts: dict[int, int] = {}
    for value in ordered:
        step = math.ceil(math.log10(max(value, 1)) * _STEPS_PER_DECADE)
        counts[step] = counts.get(step, 0) + 1
    return [[round(10 ** (step / _STEPS_PER_DECADE)), n] for step, n in sorted(counts.items())]


def percentiles_us(values_ns: Sequence[int]) -> dict[str, Any]:
    """Return how many samples there are, and their median, 99th percentile and maximum in us."""
    ordered = sorted(values_ns)
    count = len(ordered)
    return {
        "samples": count,
        "p50": ordered[count // 2] / 1e3,
        "p99": ordered[min(count - 1, count * 99 // 100)] / 1e3,
        "max": ordered[-1] / 1e3,
    }
