# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw benchmarks/results/ anew, of the JSON there: ``python -m tools.redraw``, ``make plots``."""

from __future__ import annotations

import json
from pathlib import Path

from uffdballoon.bench import plots

_RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"

if __name__ == "__main__":
    for result in sorted(_RESULTS.glob("*.json")):
        plots.draw(result.stem, json.loads(result.read_text()), str(result.with_suffix(".png")))
