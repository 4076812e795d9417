# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of results; needs the extra `plots`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from uffdballoon.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_OURS, _THEIRS, _NOBODY = "#1b6ca8", "#b8860b", "#7a7a7a"


def require() -> None:
    """Raise UnsupportedError where nothing can be drawn."""
    _pyplot()


def _pyplot() -> Any:  # noqa: ANN401 - a module that may not be there
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UnsupportedError(
            "a plot needs matplotlib",
            why=str(error),
            hint="pip install 'uffdballoon[plots]', or plot from the JSON elsewhere",
        ) from error
    mpl.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _colour(name: str) -> str:
    if name == "plain":
        return _NOBODY
    return _OURS if name.startswith("engine") else _THEIRS


def plot_latencies(result: dict[str, Any], path: str) -> None:
    """Draw a latency distribution for each handler.

    A row of panels for each kind of memory, a column for each way to touch it.
    """
    pyplot = _pyplot()
    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    ways: list[str] = []
    for row in result["series"]:
        way = f"{row['access']}s, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        panels.setdefault(row["backing"], {}).setdefault(way, []).append(row)
        if way not in ways:
            ways.append(way)
    heights = [max(map(len, of.values())) for of in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        len(ways),
        figsize=(1.5 + 6.5 * len(ways), 0.42 * sum(heights) + 0.6 * len(heights) + 1.0),
        gridspec_kw={"height_ratios": heights},
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for line, (backing, of) in zip(axes, panels.items(), strict=True):
        for axis, way in zip(line, ways, strict=True):
            if way in of:
                _draw_panel(axis, f"{backing}, {way}", of[way])
            else:
                axis.set_visible(False)
    machine = result["machine"]
    figure.suptitle(
        "Who answers a page fault, and how fast: time of one touch (log scale); "
        "solid line: median, dotted: 99th percentile\n"
        f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}",
        fontsize=10,
    )
    _save(figure, path)


def _draw_panel(axis: Any, title: str, series: Sequence[dict[str, Any]]) -> None:  # noqa: ANN401
    for place, row in enumerate(reversed(series)):
        tops = [top for top, _ in row["histogram"]]
        most = max(count for _, count in row["histogram"])
        heights = [place + 0.85 * count / most for _, count in row["histogram"]]
        colour = _colour(row["name"])
        axis.fill_between(tops, place, heights, step="pre", color=colour, alpha=0.65, linewidth=0)
        for key, style in (("p50_ns", "-"), ("p99_ns", ":")):
            axis.plot([row[key]] * 2, [place, place + 0.85], style, color="black", linewidth=1.2)
        axis.annotate(
            f"p50 {_time(row['p50_ns'])}, p99 {_time(row['p99_ns'])}",
            (0.99, place + 0.45),
            xycoords=("axes fraction", "data"),
            fontsize=7.5,
            ha="right",
        )
    axis.set_yticks([place + 0.3 for place in range(len(series))])
    axis.set_yticklabels([row["name"] for row in reversed(series)], fontsize=8.5)
    axis.set_ylim(-0.03, len(series))
    axis.set_xscale("log")
    axis.set_xlim(100, 30_000_000)
    axis.set_xticks([10**power for power in range(2, 8)])
    axis.set_xticklabels(["100 ns", "1 us", "10 us", "100 us", "1 ms", "10 ms"])
    axis.grid(axis="x", alpha=0.35)
    axis.tick_params(labelbottom=True, labelsize=8)
    axis.set_title(title, fontsize=9, loc="left")


def plot_bars(result: dict[str, Any], path: str, *, value: str, group: str | None = None) -> None:
    """Draw ``value`` of each series as a bar, named after its ``group``, too, on a log axis."""
    pyplot = _pyplot()
    series = result["series"]
    figure, axis = pyplot.subplots(figsize=(9, 0.32 * len(series) + 1.4), layout="constrained")
    labels = [f"{row[group]}: {row['name']}" if group else row["name"] for row in series]
    axis.barh(labels, [row[value] for row in series], color=_OURS)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel(value.replace("_per_s", "/s").replace("_", " "))
    axis.grid(axis="x", alpha=0.35)
    _save(figure, path)


def _time(value_ns: float) -> str:
    if value_ns < 1000:  # noqa: PLR2004
        return f"{value_ns:.0f} ns"
    return f"{value_ns / 1000:.1f} us" if value_ns < 1e6 else f"{value_ns / 1e6:.1f} ms"  # noqa: PLR2004


def _save(figure: Any, path: str) -> None:  # noqa: ANN401 - a figure
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot write the plot to {path}", why=str(error), hint="give a .png, .svg or .pdf"
        ) from error
