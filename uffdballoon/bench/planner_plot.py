# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of what planning windows and looking pages up takes, beside what it may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from uffdballoon.bench.drawing import (
    NOBODY,
    OURS,
    THEIRS,
    entitle,
    pyplot_or_refuse,
    save,
    scale_to,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Panel(NamedTuple):
    title: str
    unit: str
    scale: float
    """What a value of the result is divided by for its unit."""
    limit: float
    """In that unit."""
    limit_of: str
    """What begins so was given that limit."""
    values: Mapping[str, str]
    """Keys of the result, each with what it is, the one that the limit is for first."""


_PANELS = (
    _Panel(
        "A page is looked up",
        "ns",
        1,
        50,
        "16 TiB",
        {
            "lookup_ns": "at random in the whole guest",
            "lookup_dependent_ns": "each place by the answer before",
            "lookup_local_ns": "the same, within 64 GiB",
        },
    ),
    _Panel(
        "Memory of the manager",
        "MiB",
        1 << 20,
        96,
        "1 TiB",
        {"total_bytes": "ledger and windows", "memory_bytes": "windows alone"},
    ),
    _Panel(
        "All windows are planned anew", "ms", 1e6, 2000, "1 TiB", {"scratch_ns": "from the ledger"}
    ),
    _Panel(
        "A block of 2 MiB leaves or comes back",
        "us",
        1e3,
        1000,
        "1 TiB",
        {"change_max_ns": "longest", "change_p99_ns": "p99", "change_p50_ns": "p50"},
    ),
)
_COLOURS = (OURS, THEIRS, NOBODY)


def plot_planner(result: Mapping[str, Any], path: str) -> None:
    """Draw look-ups, memory and planning of each guest, with the limits that were set."""
    pyplot = pyplot_or_refuse()
    figure, axes = pyplot.subplots(
        2, 2, figsize=(11.0, 7.0), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, _PANELS, strict=True):
        _draw_panel(axis, panel, result["series"])
    entitle(figure, "Planning the windows of very large guests", result["machine"])
    save(figure, path)


def _draw_panel(axis: Any, panel: _Panel, series: list[Mapping[str, Any]]) -> None:  # noqa: ANN401
    places = range(len(series))
    for (key, what), colour in zip(panel.values.items(), _COLOURS, strict=False):
        values = [row[key] / panel.scale for row in series]
        axis.scatter(values, places, color=colour, s=28, label=what, zorder=3)
    axis.axvline(
        panel.limit,
        color="black",
        linestyle=":",
        label=f"limit, for {panel.limit_of}: {panel.limit:g} {panel.unit}",
    )
    scale_to(
        axis, [row[key] / panel.scale for row in series for key in panel.values] + [panel.limit]
    )
    axis.set_yticks(places, [row["name"].replace(", ", ",\n", 1) for row in series])
    axis.set_ylim(len(series) - 0.5, -0.5)
    axis.set_title(panel.title, fontsize=9.5, loc="left")
    axis.set_xlabel(panel.unit, fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.35)
    axis.legend(fontsize=7.5)
