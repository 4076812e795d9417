# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of one value for each contender: rates, times, what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from uffdballoon.bench.drawing import (
    OURS,
    THEIRS,
    WIDTH_IN,
    entitle,
    explain_colours,
    pyplot_or_refuse,
    save,
    scale_to,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Unit(NamedTuple):
    """What a value is shown in, and what it is divided by for that."""

    text: str
    size: float = 1


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn of a result.

    ``values`` are keys of each series, each with its unit, which says what is better, too.
    ``group`` is the key whose values have panels of their own. ``baselines`` are the names that
    ours are compared with.
    """

    title: str
    values: Mapping[str, Unit]
    baselines: frozenset[str]
    group: str | None = None


def plot_chart(chart: Chart, result: Mapping[str, Any], path: str) -> None:
    """Draw a panel for each value of each group."""
    pyplot = pyplot_or_refuse()
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["series"]:
        groups.setdefault(row[chart.group] if chart.group else "", []).append(row)
    panels = [(group, rows, key) for key in chart.values for group, rows in groups.items()]
    heights = [len(rows) for _, rows, _ in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(WIDTH_IN, 0.22 * sum(heights) + 0.35 * len(panels) + 1.3),
        gridspec_kw={"height_ratios": heights},
        sharex=len(chart.values) == 1,
        squeeze=False,
        layout="constrained",
    )
    for (axis,), (group, rows, key) in zip(axes, panels, strict=True):
        unit = chart.values[key]
        names = [row["name"] for row in rows]
        colours = [THEIRS if name in chart.baselines else OURS for name in names]
        has_dots = scale_to(axis, [row[key] / unit.size for row in result["series"]])
        _draw(axis, names, [row[key] / unit.size for row in rows], colours, has_dots=has_dots)
        axis.set_title(group, fontsize=8.5, loc="left")
        axis.tick_params(labelsize=8)
        if len(chart.values) > 1 or axis is axes[-1][0]:
            axis.set_xlabel(unit.text, fontsize=8.5)
    entitle(figure, chart.title, result["machine"])
    explain_colours(figure, {"what it is compared with": THEIRS, "uffdballoon": OURS})
    save(figure, path)


def _draw(
    axis: Any,  # noqa: ANN401 - of matplotlib
    names: list[str],
    values: list[float],
    colours: list[str],
    *,
    has_dots: bool,
) -> None:
    """Draw bars, which begin at zero, or dots where the axis has none."""
    places = range(len(values))
    if has_dots:
        axis.scatter(values, places, c=colours, s=28, zorder=3)
    else:
        axis.barh(places, values, color=colours)
    for place, value in zip(places, values, strict=True):
        axis.annotate(
            f"{value:.3g}",
            (value, place),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
        )
    axis.set_yticks(places, names)
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.35)
