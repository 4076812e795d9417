# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of what a balloon costs on the wire, by encoding, as RAM grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uffdballoon.bench.drawing import NOBODY, OURS, THEIRS, WIDTH_IN, pyplot_or_refuse, save
from uffdballoon.bench.encodings import ENCODINGS, HALF, PIECES, SMALL
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

_STYLES = {
    "pfn_array": {"color": "black", "linestyle": "--"},
    "bitmap": {"color": OURS, "marker": "o"},
    "ram_bitmap": {"color": OURS, "linestyle": ":"},
    "range_list": {"color": THEIRS, "marker": "s"},
    "order_list": {"color": NOBODY, "marker": "^"},
}
_GIB = 1 << 30
_MIB = 1 << 20


def plot_encodings(result: Mapping[str, Any], path: str) -> None:
    """Draw a panel for each balloon and each degree of fragmentation, sizes of guests across.

    Where none was simulated what was recorded is drawn.
    """
    if not result["series"]:
        _plot_recorded(result["recorded"], path)
        return
    pyplot = pyplot_or_refuse()
    figure, panels = pyplot.subplots(
        2,
        len(PIECES),
        figsize=(11.0, 6.6),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for axes, balloon in zip(panels, (SMALL, HALF), strict=True):
        for axis, pieces in zip(axes, PIECES, strict=True):
            of_panel = [
                row
                for row in result["series"]
                if (row["balloon"], row["in_use"]) == (balloon, pieces)
            ]
            _draw_panel(axis, of_panel)
            axis.set_title(f"balloon: {balloon}\nin use: {pieces}", fontsize=9, loc="left")
        axes[0].set_ylabel("MiB on the wire", fontsize=8.5)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False
    )
    share = f"{result['in_use_share']:.0%}"
    figure.suptitle(
        "What the balloon of a guest costs on the wire, by encoding, as RAM grows\n"
        f"simulated with a buddy allocator; {share} of RAM is in use, in pieces of that size",
        fontsize=10,
    )
    save(figure, path)


def _plot_recorded(rows: list[Mapping[str, Any]], path: str) -> None:
    """Draw a line of dots for each inflate and deflate."""
    pyplot = pyplot_or_refuse()
    height_in = min(9.0, 0.3 * len(rows) + 1.8)
    figure, axis = pyplot.subplots(figsize=(WIDTH_IN, height_in), layout="constrained")
    for encoding, what in ENCODINGS.items():
        style = {"marker": "D", **_STYLES[encoding], "linestyle": ""}
        values = [row["wire_bytes"][encoding] for row in rows]
        axis.plot(values, range(len(rows)), label=what, markersize=5, **style)
    axis.set_xscale("log")
    axis.set_xlabel("bytes on the wire")
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.35)
    axis.legend(fontsize=7.5)
    figure.suptitle("What each inflate and deflate of a trace costs, by encoding", fontsize=10)
    save(figure, path)


def _draw_panel(axis: Any, of_panel: list[Mapping[str, Any]]) -> None:  # noqa: ANN401 - of matplotlib
    sizes = [row["ram_bytes"] / _GIB for row in of_panel]
    for encoding, what in ENCODINGS.items():
        values = [row["wire_bytes"][encoding] / _MIB for row in of_panel]
        axis.plot(sizes, values, label=what, markersize=4, **_STYLES[encoding])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axis.set_xticks(sizes, [format_size(row["ram_bytes"]) for row in of_panel], fontsize=7)
    axis.minorticks_off()
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(alpha=0.35)
