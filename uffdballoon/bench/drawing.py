# SPDX-License-Identifier: GPL-2.0-or-later
"""What pictures have in common; the library that draws them is an extra and need not be there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdballoon.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OURS, THEIRS, NOBODY = "#1b6ca8", "#b8860b", "#7a7a7a"
"""Colours: what uffdballoon does, what it is compared with, and where nobody does anything."""

WIDTH_IN = 9.0
"""What a page of documentation shows without shrinking it, 1,170 pixels."""


_FORMATS = (".png", ".svg", ".pdf")

_LOG_FROM = 20
"""How far apart the largest and the smallest value are on a logarithmic axis."""


def pyplot_or_refuse() -> Any:  # noqa: ANN401 - a module that may not be there
    """Return matplotlib.pyplot; raise UnsupportedError where it is not installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UnsupportedError(
            "a plot needs matplotlib",
            why=str(error),
            hint=f"{sys.executable} -m pip install matplotlib, or plot from the JSON elsewhere",
        ) from error
    mpl.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def refuse_unless_picture(path: str) -> None:
    """Raise UsageError for a name whose end says no format: another file would be written."""
    if Path(path).suffix.lower() not in _FORMATS:
        raise UsageError(
            f"cannot write the plot to {path or 'a file without a name'}",
            why=f"the end of its name says the format, and is none of {', '.join(_FORMATS)}",
            hint="give a .png, .svg or .pdf",
        )


def save(figure: Any, path: str) -> None:  # noqa: ANN401 - a figure
    """Write a figure; raise UsageError where that cannot be."""
    try:
        refuse_unless_picture(path)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot write the plot to {path}", why=str(error), hint="give a .png, .svg or .pdf"
        ) from error
    finally:
        pyplot_or_refuse().close(figure)  # it would be kept, for a window that nobody opens


def entitle(figure: Any, title: str, machine: Mapping[str, Any]) -> None:  # noqa: ANN401 - a figure
    """Say above a figure what it shows, and on what machine that was measured."""
    where = f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}"
    figure.suptitle(f"{title}\n{where}", fontsize=10)


def explain_colours(figure: Any, colours: Mapping[str, str], more: tuple[Any, ...] = ()) -> None:  # noqa: ANN401 - a figure
    """Say below a figure who has which colour; ``more`` are lines with labels of their own."""
    patches = importlib.import_module("matplotlib.patches")
    handles = [patches.Patch(color=colour, label=who) for who, colour in colours.items()]
    handles += more
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8,
        frameon=False,
    )


def scale_to(axis: Any, values: Sequence[float]) -> bool:  # noqa: ANN401 - of matplotlib
    """Have an axis begin at zero, or be logarithmic where values are far apart; return which."""
    if is_log := min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 1.6, max(values) * 1.9)
        axis.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
        axis.xaxis.set_minor_formatter(lambda _value, _place: "")
    else:
        axis.set_xlim(0, max(values) * 1.12)
    return is_log


def format_time(value_ns: float) -> str:
    for unit, size in (("ns", 1.0), ("us", 1e3), ("ms", 1e6)):
        if value_ns < 1000 * size:
            return f"{value_ns / size:.{0 if unit == 'ns' else 1}f} {unit}"
    return f"{value_ns / 1e9:.1f} s"
