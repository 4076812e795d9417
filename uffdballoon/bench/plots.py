# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of results; needs the extra `plots`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.drawing import pyplot_or_refuse as _pyplot
from uffdballoon.bench.drawing import save as _save

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.records.statistics import FragmentCounts

_OURS, _THEIRS, _NOBODY = "#1b6ca8", "#b8860b", "#7a7a7a"


def require() -> None:
    """Raise UnsupportedError where nothing can be drawn."""
    _pyplot()


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


def plot_stops(result: dict[str, Any], path: str) -> None:
    """Draw p50 to max of each time that ``bench attach`` measured, p99 as a dot."""
    pyplot = _pyplot()
    lines = [
        (f"{row['name']}: {what}", values)
        for row in result["series"]
        for what, values in (
            ("stop to attach", row["stop_us"]),
            ("whole attach", row["obtain_us"]),
            ("stop to zap", row["zap"]["stop_us"]),
            ("QMP, resting", row["qmp_us"]["resting"]),
            ("QMP, zapping", row["qmp_us"]["zapping"]),
        )
    ]
    figure, axis = pyplot.subplots(figsize=(9, 0.32 * len(lines) + 1.4), layout="constrained")
    for place, (_, values) in enumerate(lines):
        axis.plot([values["p50"], values["max"]], [place, place], color=_OURS)
        axis.plot([values["p99"]], [place], "o", color=_OURS)
    axis.set_yticks(range(len(lines)), [label for label, _ in lines])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("us: p50 to max, p99 as a dot")
    axis.grid(axis="x", alpha=0.35)
    _save(figure, path)


def _time(value_ns: float) -> str:
    if value_ns < 1000:  # noqa: PLR2004
        return f"{value_ns:.0f} ns"
    return f"{value_ns / 1000:.1f} us" if value_ns < 1e6 else f"{value_ns / 1e6:.1f} ms"  # noqa: PLR2004


def plot_fragments(balloons: dict[str, FragmentCounts], path: str) -> None:
    """Draw run lengths, orders and cost on the wire of each balloon, a row for each."""
    pyplot = _pyplot()
    figure, rows = pyplot.subplots(
        len(balloons), 3, figsize=(14, 3.2 * len(balloons)), layout="constrained", squeeze=False
    )
    for axes, (title, fragments) in zip(rows, balloons.items(), strict=True):
        panels: tuple[tuple[str, dict[Any, int], str], ...] = (
            ("runs by length in pages", fragments.run_lengths, "runs"),
            ("power-of-two blocks by order", fragments.orders, "blocks"),
            ("bytes on the wire", asdict(fragments.wire_bytes), "bytes"),
        )
        for axis, (what, values, unit) in zip(axes, panels, strict=True):
            names = [str(key).replace("_", "\n") for key in values]
            bars = axis.bar(names, list(values.values()), color=_OURS)
            if values:
                axis.set_yscale("log")
                axis.margins(y=0.15)
            axis.bar_label(bars, fmt=_count, fontsize=6)
            axis.set_title(f"{title}: {what}", fontsize=9, loc="left")
            axis.set_ylabel(unit, fontsize=8)
            axis.tick_params(labelsize=7)
    _save(figure, path)


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000:  # noqa: PLR2004
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def plot_reclaim(result: dict[str, Any], path: str) -> None:
    """Draw what came back to the host over time, by who saw to it."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(9, 4), layout="constrained")
    colours = {"with_reclaimer": _OURS, "without_reclaimer": _NOBODY, "cgroup": _THEIRS}
    for name, colour in colours.items():
        row = result[name]
        if row is None:
            continue
        label = f"cgroup: {row['way']}" if "way" in row else name.replace("_", " ")
        axis.plot(
            [sample["s"] for sample in row["series"]],
            [sample["reclaimed_bytes"] / row["ballooned_bytes"] for sample in row["series"]],
            color=colour,
            label=label,
        )
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axis.set(
        xlabel="seconds since the guest was done",
        ylabel="returned, of what is ballooned",
        title=f"half of each huge page of {result['size_bytes'] >> 20} MiB given up in 4k pages",
    )
    axis.grid(alpha=0.35)
    axis.legend()
    _save(figure, path)


def plot_khugepaged(result: dict[str, Any], path: str) -> None:
    """Draw the resident memory of both guests over time."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(9, 4), layout="constrained")
    for row, colour in zip(result["series"], (_THEIRS, _OURS), strict=True):
        axis.plot(
            [sample["s"] for sample in row["rss"]],
            [sample["bytes"] / (1 << 20) for sample in row["rss"]],
            color=colour,
            label=row["name"].replace("_", " "),
        )
    axis.set(
        xlabel="seconds of khugepaged at its most aggressive",
        ylabel="Rss, MiB",
        title=f"{result['ballooned_bytes'] >> 20} MiB given up, half of each huge page",
    )
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.35)
    axis.legend()
    _save(figure, path)
