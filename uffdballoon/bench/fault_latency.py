# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a touch of trapped memory takes, by who answers it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.contenders import Engine, Nobody, Reference
from uffdballoon.bench.distribution import Distribution
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.reference import HandlerKind
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.toucher import Toucher
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES
from uffdballoon.model.ram import Backing, RamBlock
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from uffdballoon.bench.contenders import Contender


@dataclass(frozen=True, slots=True)
class Shape:
    """Memory of one backing: ``touches`` a thread and round, ``stride_bytes`` apart."""

    toucher: str
    backing: Backing
    stride_bytes: int
    touches: int
    modes: tuple[str, ...]
    shared: bool = False

    def span_bytes(self, threads: int) -> int:
        """Return the size of memory that one round touches, in whole blocks of 2 MiB."""
        return -(-self.touches * threads * self.stride_bytes // HUGE_BYTES) * HUGE_BYTES


_ALL_MODES = ("observe", "throttle", "cap", "unfilled", "ordinary")
SHAPES = {
    "anon-4k": Shape("anon", Backing.ANON, PAGE_BYTES, 2048, _ALL_MODES),
    "anon-thp": Shape("thp", Backing.ANON, HUGE_BYTES, 64, ("observe", "ordinary")),
    "memfd-4k": Shape(
        "memfd", Backing.MEMFD, PAGE_BYTES, 2048, ("observe", "unfilled", "ordinary"), shared=True
    ),
    "hugetlbfs-2m": Shape("hugetlb", Backing.HUGETLBFS, HUGE_BYTES, 32, ("observe",)),
}


def measure_process(
    name: str, *, threads: int, samples: int, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield a series for each contender, on memory of another process that touches it."""
    shape = SHAPES[name]
    size_bytes = shape.span_bytes(threads)
    with contextlib.ExitStack() as stack:
        if shape.backing is Backing.HUGETLBFS:
            stack.enter_context(HugePagePool(size_bytes // HUGE_BYTES + 1))
        toucher = stack.enter_context(Toucher(shape.toucher, size_bytes, threads))
        block = RamBlock(
            "ram",
            toucher.span.start,
            size_bytes,
            HUGE_BYTES if shape.backing is Backing.HUGETLBFS else PAGE_BYTES,
            shape.backing,
            shared=shape.shared,
        )
        for access in (Access.WRITE, Access.READ):
            modes = shape.modes if access is Access.WRITE else ("zero-read",)
            contenders: list[Contender] = [
                stack.enter_context(c) for c in _contenders(toucher.pid, block, modes)
            ]
            progress(f"{name}, {threads} thread(s), {access.value}")
            measured = _interleave(contenders, toucher, shape, access, samples)
            for contender, distribution in zip(contenders, measured, strict=True):
                yield {
                    "name": contender.name,
                    "backing": name,
                    "access": access.value,
                    "threads": threads,
                    **distribution.summary(),
                }


def _contenders(pid: int, block: RamBlock, modes: Sequence[str]) -> Iterator[Contender]:
    cpu = min(os.sched_getaffinity(0))  # that of the first thread that touches
    yield Nobody()
    yield Reference(pid, HandlerKind.MANPAGE, block, cpu=-1)
    yield Reference(pid, HandlerKind.BEST, block, cpu=cpu)
    for mode in modes:
        yield Engine(pid, mode, block)


def _interleave(
    contenders: Sequence[Contender], toucher: Toucher, shape: Shape, access: Access, samples: int
) -> list[Distribution]:
    """Give each its turn in every round, and the first turn to another one each time."""
    distributions = [Distribution() for _ in contenders]
    rounds = -(-samples // (shape.touches * toucher.threads))
    for number in range(rounds + 1):  # the first round warms up
        for turn in range(len(contenders)):
            index = (number + turn) % len(contenders)
            contender = contenders[index]
            contender.trap(toucher.span)
            try:
                toucher.zap()
                elapsed_ns = toucher.touch(access, shape.stride_bytes, shape.touches)
            finally:
                contender.let_go(toucher.span)
            if number:
                distributions[index].add(toucher.records(shape.touches), elapsed_ns)
    return distributions


def ratios(series: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Compare our trap of a ballooned page with the references: 4k anon, one thread, writes."""
    of = {
        s["name"]: s
        for s in series
        if (s["backing"], s["threads"], s["access"]) == ("anon-4k", 1, "write")
    }
    ours, manpage, best = (of.get(name) for name in ("engine:observe", "manpage", "best"))
    if ours is None or manpage is None or best is None:
        return {}
    return {
        "p50_vs_manpage": ours["p50_ns"] / manpage["p50_ns"],
        "p99_vs_manpage": ours["p99_ns"] / manpage["p99_ns"],
        "p50_vs_best_c": ours["p50_ns"] / best["p50_ns"],
        "p99_vs_best_c": ours["p99_ns"] / best["p99_ns"],
    }


def run(
    *,
    backings: Sequence[str],
    threads: Sequence[int],
    samples: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure and return the result in the shape of ``bench fault-latency --json``."""
    series: list[dict[str, Any]] = []
    for name in backings:
        for count in threads:
            series.extend(measure_process(name, threads=count, samples=samples, progress=progress))
    return {"machine": describe_machine(), "series": series, "ratios": ratios(series)}


HEADER = (
    *("memory", "who", "access", "thr"),
    *("p50 us", "p90", "p99", "p99.9", "max", "faults/s", "p50 vs manpage"),
)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""

    def group(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["backing"], row["access"], row["threads"]

    manpage = {group(row): row["p50_ns"] for row in result["series"] if row["name"] == "manpage"}
    keys = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")
    return [
        (
            row["backing"],
            row["name"],
            row["access"],
            str(row["threads"]),
            *(f"{row[key] / 1000:.2f}" for key in keys),
            str(row["faults_per_s"]),
            f"{row['p50_ns'] / manpage[group(row)]:.3f}",
        )
        for row in result["series"]
    ]
