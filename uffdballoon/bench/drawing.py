# SPDX-License-Identifier: GPL-2.0-or-later
"""The library that draws pictures, which is an extra and need not be there."""

from __future__ import annotations

import importlib
from typing import Any

from uffdballoon.errors import UnsupportedError, UsageError


def pyplot_or_refuse() -> Any:  # noqa: ANN401 - a module that may not be there
    """Return matplotlib.pyplot; raise UnsupportedError where it is not installed."""
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


def save(figure: Any, path: str) -> None:  # noqa: ANN401 - a figure
    """Write a figure; raise UsageError where that cannot be."""
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot write the plot to {path}", why=str(error), hint="give a .png, .svg or .pdf"
        ) from error
