# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of latencies: a distribution for each handler of a page fault."""

from __future__ import annotations

import importlib
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.drawing import (
    NOBODY,
    OURS,
    THEIRS,
    entitle,
    explain_colours,
    format_time,
    pyplot_or_refuse,
    save,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OURS = "engine:"
_NAMES = {
    "plain": "plain page fault",
    "manpage": "handler of userfaultfd(2)",
    "best": "best handler in C",
}
_COLOURS = {"the kernel alone": NOBODY, "other handlers": THEIRS, "uffdballoon": OURS}
_ROW_HEIGHT_IN = 0.36


def plot_latencies(result: Mapping[str, Any], path: str) -> None:
    """Draw a file for each kind of memory: ``path``, or, of several, names made of it."""
    backings = list(dict.fromkeys(row["backing"] for row in result["series"]))
    for backing in backings:
        series = [row for row in result["series"] if row["backing"] == backing]
        name = path if len(backings) == 1 else path_of(path, backing)
        _plot_backing(backing, series, result["machine"], name)


def path_of(path: str, backing: str) -> str:
    """Return ``latency-anon-4k.png`` of ``latency.png``."""
    pure = PurePath(path)
    return str(pure.with_name(f"{pure.stem}-{backing}{pure.suffix}"))


def _plot_backing(
    backing: str, series: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], path: str
) -> None:
    """Draw a column for writes and one for reads, and a row for each number of threads."""
    pyplot = pyplot_or_refuse()
    panels: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in series:
        panels.setdefault((row["threads"], row["access"]), []).append(row)
    threads = list(dict.fromkeys(number for number, _ in panels))
    accesses = list(dict.fromkeys(access for _, access in panels))
    slots = max(map(len, panels.values()))
    figure, axes = pyplot.subplots(
        len(threads),
        len(accesses),
        figsize=(11.0, (_ROW_HEIGHT_IN * slots + 0.6) * len(threads) + 1.0),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for line, number in zip(axes, threads, strict=True):
        for axis, access in zip(line, accesses, strict=True):
            title = f"{access}s, {number} thread{'s' if number > 1 else ''}"
            _draw_panel(axis, title, panels.get((number, access), ()), slots)
    entitle(figure, f"How long a touch of {backing} memory takes, by who answers it", machine)
    lines = importlib.import_module("matplotlib.lines")
    marks = tuple(
        lines.Line2D([], [], color="black", linestyle=style, linewidth=1.2, label=what)
        for what, style in (("median", "-"), ("99th percentile", ":"))
    )
    explain_colours(figure, _COLOURS, marks)
    save(figure, path)


def _draw_panel(axis: Any, title: str, series: Sequence[Mapping[str, Any]], slots: int) -> None:  # noqa: ANN401
    """Draw histograms from the top, as high in each panel, however many there are."""
    places = range(slots - 1, slots - 1 - len(series), -1)
    for place, row in zip(places, series, strict=True):
        tops = [top for top, _ in row["histogram"]]
        most = max(count for _, count in row["histogram"])
        heights = [place + 0.85 * count / most for _, count in row["histogram"]]
        colour = _colour(row["name"])
        axis.fill_between(tops, place, heights, step="pre", color=colour, alpha=0.65, linewidth=0)
        for key, style in (("p50_ns", "-"), ("p99_ns", ":")):
            axis.plot([row[key]] * 2, [place, place + 0.85], style, color="black", linewidth=1.2)
        axis.annotate(
            f"p50 {format_time(row['p50_ns'])}, p99 {format_time(row['p99_ns'])}",
            (0.99, place + 0.35),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            ha="right",
        )
    axis.set_yticks([place + 0.3 for place in places], [_name(row["name"]) for row in series])
    axis.set_ylim(-0.03, slots)
    axis.set_xscale("log")
    axis.set_xlim(100, 30_000_000)
    axis.set_xticks([10**power for power in range(2, 8)])
    axis.set_xticklabels(["100 ns", "1 us", "10 us", "100 us", "1 ms", "10 ms"])
    axis.grid(axis="x", alpha=0.35)
    axis.tick_params(labelbottom=True, labelsize=8)
    axis.set_title(title, fontsize=9, loc="left")


def _colour(name: str) -> str:
    if name == "plain":
        return NOBODY
    return OURS if name.startswith(_OURS) else THEIRS


def _name(name: str) -> str:
    return _NAMES.get(name, name.removeprefix(_OURS))
