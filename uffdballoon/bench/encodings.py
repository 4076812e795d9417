# SPDX-License-Identifier: GPL-2.0-or-later
"""What a balloon would cost on the wire in other encodings, as RAM grows.

Guests of any size are simulated with a buddy allocator, of which the balloon takes
single pages as Linux's driver does; traces of real guests are replayed beside them.
"""

from __future__ import annotations

from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.buddy import Buddy
from uffdballoon.bench.machine import describe_machine
from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.fragments import MAX_ORDER
from uffdballoon.model.sizes import format_size
from uffdballoon.model.tracing import replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from uffdballoon.model.fragments import Fragments
    from uffdballoon.model.records.statistics import RecordedTrace

ENCODINGS = {
    "pfn_array": "array of 32-bit page numbers (virtio)",
    "bitmap": "bitmap, first page to last",
    "ram_bitmap": "bitmap of all RAM",
    "range_list": "list of (page number, length)",
    "order_list": "list of power-of-two blocks",
}
"""As in WireBytes, but for ``ram_bitmap``, and what each is; virtio's own first."""
PIECES: dict[str, tuple[int, ...]] = {
    "just booted": (),
    "2 MiB": (9,),
    "mixed": (0, 3, 6, 9),
    "4 KiB": (0,),
}
"""In what pieces memory is in use, by order; of a guest that has just booted in one, the lowest."""
SMALL = "4 GiB"
HALF = "half of what is free"
DEFAULT_SIZES = tuple(gib << 30 for gib in (100, 256, 512, 1024))
_SMALL_PAGES = (4 << 30) // PAGE_BYTES
_IN_USE = 0.25
_SEED = 1
_ALIGNED_BYTES = PAGE_BYTES << MAX_ORDER
_MIN_BYTES, _MAX_BYTES = 16 << 30, 4 << 40


def check_size(size_bytes: int) -> int:
    """Return a guest's size in whole blocks of 4 MiB; raise UsageError where it cannot be."""
    if not _MIN_BYTES <= size_bytes <= _MAX_BYTES:
        raise UsageError(
            f"no guest of {format_size(size_bytes)} is simulated",
            why=f"a balloon of {SMALL} is taken of it, and memory is needed for each of its pages",
            hint=f"give {format_size(_MIN_BYTES)} to {format_size(_MAX_BYTES)}",
        )
    return size_bytes // _ALIGNED_BYTES * _ALIGNED_BYTES


def _row(name: str, ram_bytes: int, fragments: Fragments, **more: object) -> dict[str, Any]:
    counts = asdict(fragments.counts())
    counts["wire_bytes"]["ram_bitmap"] = -(-ram_bytes // (PAGE_BYTES * 8))
    cheapest = min(ENCODINGS, key=lambda encoding: counts["wire_bytes"][encoding])
    return {"name": name, "ram_bytes": ram_bytes, **more, **counts, "cheapest": cheapest}


def simulate(ram_bytes: int, pieces: str) -> Iterator[tuple[str, Fragments]]:
    """Yield what each balloon is called, and what it is made of; the larger goes on with the other.

    A quarter of the guest's memory is in use, in ``pieces`` of PIECES. Of a guest that has just
    booted the lowest free block goes first: its lists are in order still.
    """
    seed = 0 if not PIECES[pieces] else _SEED
    pages = ram_bytes // PAGE_BYTES
    with Buddy(pages) as buddy:
        if orders := PIECES[pieces]:
            buddy.scatter(orders, in_use=_IN_USE, seed=_SEED)
        else:
            used = round(pages * _IN_USE)
            buddy.free(used, pages - used)
        half = buddy.free_pages // 2
        buddy.take(_SMALL_PAGES, seed)
        yield SMALL, buddy.fragments()
        buddy.take(half - _SMALL_PAGES, seed)
        yield HALF, buddy.fragments()


def run(
    *,
    sizes: Sequence[int],
    traces: Mapping[str, RecordedTrace] = MappingProxyType({}),
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Simulate guests of ``sizes``; return what their balloons are made of, and would cost.

    With them what ``traces`` of real ones, by name, recorded.
    """
    series: list[dict[str, Any]] = []
    for ram_bytes in sorted({check_size(size) for size in sizes}):
        for pieces in PIECES:
            progress(f"a guest of {format_size(ram_bytes)}, in use: {pieces}")
            series += [
                _row(
                    f"{format_size(ram_bytes)}, in use: {pieces}, balloon: {balloon}",
                    ram_bytes,
                    fragments,
                    in_use=pieces,
                    balloon=balloon,
                )
                for balloon, fragments in simulate(ram_bytes, pieces)
            ]
    return {
        "machine": describe_machine(),
        "in_use_share": _IN_USE,
        "series": series,
        "recorded": [
            _row(f"{name}, {part.name}", traced.ram_bytes, part.fragments)
            for name, traced in traces.items()
            for part in replay(traced)
        ],
        "ratios": _ratios(series),
    }


def _ratios(series: list[dict[str, Any]]) -> dict[str, float]:
    """Return what a bitmap costs, of virtio's array, in the smallest guest and the largest."""
    if not series:
        return {}
    ends = (series[0]["ram_bytes"], series[-1]["ram_bytes"])
    return {
        f"bitmap of array: {row['name']}": row["wire_bytes"]["bitmap"]
        / row["wire_bytes"]["pfn_array"]
        for row in series
        if row["ram_bytes"] in ends and row["in_use"] in ("just booted", "4 KiB")
    }


HEADER = ("guest", "runs", "pages a run", *ENCODINGS, "least")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            row["name"],
            f"{row['runs']:,}",
            f"{row['pages'] / max(row['runs'], 1):.1f}",
            *(format_size(row["wire_bytes"][encoding]) for encoding in ENCODINGS),
            row["cheapest"],
        )
        for row in (*result["series"], *result["recorded"])
    ]
