# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of the results in benchmarks/results/."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from uffdballoon.bench import drawing, plots
from uffdballoon.errors import UnsupportedError

pytest.importorskip("matplotlib")

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_NAMES = sorted(path.stem for path in _RESULTS.glob("*.json"))


def _size(png: Path) -> tuple[int, int]:
    """Return width and height in pixels, of the IHDR chunk."""
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width, height


@pytest.mark.parametrize("name", _NAMES)
def test_every_result_is_drawn_at_a_size_that_a_page_shows(name: str, tmp_path: Path) -> None:
    result = json.loads((_RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    plots.draw(name, result, str(tmp_path / f"{name}.png"))
    drawn = sorted(tmp_path.iterdir())
    assert [file.name for file in drawn] == sorted(
        file.name for file in _RESULTS.glob(f"{name}*.png")
    )
    for file in drawn:
        width, height = _size(file)
        assert width <= 1500
        assert height <= 1200


def test_latencies_of_one_kind_of_memory_are_drawn_where_told(tmp_path: Path) -> None:
    result = json.loads((_RESULTS / "fault-latency.json").read_text(encoding="utf-8"))
    result["series"] = [row for row in result["series"] if row["backing"] == "anon-4k"]
    plots.draw("fault-latency", result, str(tmp_path / "latency.png"))
    assert [file.name for file in tmp_path.iterdir()] == ["latency.png"]


def test_bars_begin_at_zero_and_values_far_apart_have_a_logarithmic_axis() -> None:
    pyplot = drawing.pyplot_or_refuse()
    figure, (bars, dots) = pyplot.subplots(2, 1)
    assert not drawing.scale_to(bars, [1.0, 2.0])
    assert bars.get_xlim()[0] == 0
    assert drawing.scale_to(dots, [0.1, 7.0])
    assert dots.get_xscale() == "log"
    pyplot.close(figure)


def test_who_has_no_matplotlib_is_told_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError) as refused:
        drawing.pyplot_or_refuse()
    assert f"{sys.executable} -m pip install matplotlib" in refused.value.hint
