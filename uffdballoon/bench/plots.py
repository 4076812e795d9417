# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of results; needs the extra `plots`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from uffdballoon.bench.drawing import (
    NOBODY,
    OURS,
    THEIRS,
    WIDTH_IN,
    entitle,
    pyplot_or_refuse,
    save,
)
from uffdballoon.bench.encodings_plot import plot_encodings
from uffdballoon.bench.latency_plot import plot_latencies
from uffdballoon.bench.planner_plot import plot_planner
from uffdballoon.bench.rates_plot import Chart, Unit, plot_chart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uffdballoon.model.records.statistics import FragmentCounts

_CHARTS = {
    "refill": Chart(
        "How fast memory comes back to a guest that may have it",
        {"gib_per_s": Unit("GiB/s, more is better")},
        frozenset({"plain", "manpage", "best"}),
        group="pages",
    ),
    "zap": Chart(
        "How fast memory is dropped: from outside, and by the process itself",
        {"gib_per_s": Unit("GiB/s, more is better")},
        frozenset({"madvise", "process_madvise"}),
        group="shape",
    ),
    "balloon": Chart(
        "How long a Linux guest's balloon takes, by who follows it",
        {
            "inflate_s": Unit("seconds of an inflate, less is better"),
            "deflate_s": Unit("seconds of a deflate, less is better"),
        },
        frozenset({"nobody"}),
    ),
    "steady": Chart(
        "How fast a Linux guest uses memory that it owns",
        {
            "sequential_bytes_per_s": Unit("GiB/s, sequential, more is better", 1 << 30),
            "random_per_s": Unit("million accesses/s, random, more is better", 1e6),
        },
        frozenset({"not attached"}),
    ),
    "guest": Chart(
        "How fast a guest reads what it keeps after it gave half of its memory up",
        {"speed_kept": Unit("of its speed before, more is better")},
        frozenset(),
    ),
    "limit": Chart(
        "How much of its RAM a guest has that needs 1.2 times its limit",
        {"most_resident_bytes": Unit("MiB at most, sampled every 10 ms", 1 << 20)},
        frozenset({"without a limit", "cgroup"}),
    ),
    "manager": Chart(
        "How long a manager takes to answer while it is busy",
        {"p99_us": Unit("ms, 99th percentile, less is better", 1e3)},
        frozenset({"status, empty balloon"}),
    ),
}


def require() -> None:
    """Raise UnsupportedError where nothing can be drawn."""
    pyplot_or_refuse()


def draw(name: str, result: Mapping[str, Any], path: str) -> None:
    """Draw the result of a benchmark; raise UsageError where the file cannot be written."""
    if name in _CHARTS:
        plot_chart(_CHARTS[name], result, path)
    else:
        _PLOTS[name](result, path)


def _plot_stops(result: Mapping[str, Any], path: str) -> None:
    """Draw p50 to max of each time that ``bench attach`` measured, p99 as a dot."""
    pyplot = pyplot_or_refuse()
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
    figure, axis = pyplot.subplots(
        figsize=(WIDTH_IN, 0.32 * len(lines) + 1.6), layout="constrained"
    )
    for place, (what, values) in enumerate(lines):
        colour = NOBODY if what.endswith("resting") else OURS
        axis.plot([values["p50"], values["max"]], [place, place], color=colour)
        axis.plot([values["p50"]], [place], "|", color=colour, markersize=11)
        axis.plot([values["p99"]], [place], "o", color=colour)
    for mark, label in (("|", "median"), ("o", "99th percentile"), ("-", "up to the longest")):
        axis.plot([], [], mark, color=OURS, label=label)
    axis.set_yticks(range(len(lines)), [label for label, _ in lines])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("us")
    axis.grid(axis="x", alpha=0.35)
    axis.legend(fontsize=8)
    entitle(
        figure,
        "How long an attach and a zap stop QEMU's RCU thread, and its monitor takes",
        result["machine"],
    )
    save(figure, path)


def plot_fragments(balloons: dict[str, FragmentCounts], path: str) -> None:
    """Draw run lengths, orders and cost on the wire of each balloon, a row for each."""
    pyplot = pyplot_or_refuse()
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
            bars = axis.bar(names, list(values.values()), color=OURS)
            if values:
                axis.set_yscale("log")
                axis.margins(y=0.15)
            axis.bar_label(bars, fmt=_count, fontsize=6)
            axis.set_title(f"{title}: {what}", fontsize=9, loc="left")
            axis.set_ylabel(unit, fontsize=8)
            axis.tick_params(labelsize=7)
    save(figure, path)


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000:  # noqa: PLR2004
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _plot_reclaim(result: Mapping[str, Any], path: str) -> None:
    """Draw what came back to the host over time, by who saw to it."""
    pyplot = pyplot_or_refuse()
    figure, axis = pyplot.subplots(figsize=(WIDTH_IN, 4), layout="constrained")
    colours = {"with_reclaimer": OURS, "without_reclaimer": NOBODY, "cgroup": THEIRS}
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
    )
    axis.grid(alpha=0.35)
    axis.legend()
    entitle(
        figure,
        "What comes back to the host of a balloon of single pages: "
        f"half of each huge page of {result['size_bytes'] >> 20} MiB",
        result["machine"],
    )
    save(figure, path)


def _plot_khugepaged(result: Mapping[str, Any], path: str) -> None:
    """Draw the resident memory of both guests over time."""
    pyplot = pyplot_or_refuse()
    figure, axis = pyplot.subplots(figsize=(WIDTH_IN, 4), layout="constrained")
    for row, colour in zip(result["series"], (THEIRS, OURS), strict=True):
        axis.plot(
            [sample["s"] for sample in row["rss"]],
            [sample["bytes"] / (1 << 20) for sample in row["rss"]],
            color=colour,
            label=row["name"].replace("_", " "),
        )
    axis.set(
        xlabel="seconds of khugepaged at its most aggressive",
        ylabel="resident memory of QEMU, MiB",
    )
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.35)
    axis.legend()
    entitle(
        figure,
        "Whether khugepaged fills a balloon of single pages: "
        f"{result['ballooned_bytes'] >> 20} MiB given up, half of each huge page",
        result["machine"],
    )
    save(figure, path)


_PLOTS: dict[str, Callable[[Mapping[str, Any], str], None]] = {
    "attach": _plot_stops,
    "encodings": plot_encodings,
    "fault-latency": plot_latencies,
    "khugepaged": _plot_khugepaged,
    "planner": plot_planner,
    "reclaim": _plot_reclaim,
}
