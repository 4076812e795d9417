# SPDX-License-Identifier: GPL-2.0-or-later
"""The screens of `top` fit the terminal, and say what there is to say."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.blockmaps import block_map, letters
from uffdballoon.cli.rates import Rates
from uffdballoon.cli.text.overview import Guest, overview
from uffdballoon.cli.text.screen import View, screen
from uffdballoon.host.pressure import Pressure, memory_pressure, parse_pressure
from uffdballoon.model.addresses import Gpa
from uffdballoon.model.blockmap import Region
from uffdballoon.model.blockstate import BlockState
from uffdballoon.model.records.encoding import read
from uffdballoon.model.records.status import Status

_SAMPLES = Path(__file__).parents[1] / "data" / "json"
STATUS = read(json.loads((_SAMPLES / "status-held.json").read_text(encoding="utf-8")), Status)
RATES = Rates(violations=7.4, granted=2, ordinary=3, inflated_pages=512, deflated_pages=0)
PRESSURE = Pressure(12.34, 0.4)
SIZES = [(80, 24), (100, 30), (200, 60), (76, 20)]


def console(width: int, height: int) -> Console:
    return Console(
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system=None,
        legacy_windows=False,
    )


def drawn(renderable: object, on: Console) -> list[str]:
    with on.capture() as capture:
        on.print(renderable)
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("blocks", [1, 96, 1 << 19])
def test_the_screen_of_a_guest_of_any_size_fits(width: int, height: int, blocks: int) -> None:
    memory = block_map(Region(Gpa(0), letters([BlockState.PARTLY]) * blocks))
    on = console(width, height)
    lines = drawn(screen(View(STATUS, memory, RATES, PRESSURE), on, fill=True), on)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = " ".join("\n".join(lines).split())
    for words in ("violations", "7/s", "answer p99.9", "memory pressure some 12%, full 0%", "held"):
        assert words in text, text


def test_where_the_host_counts_no_pressure_none_is_shown() -> None:
    memory = block_map(Region(Gpa(0), letters([BlockState.OWNED_4K])))
    on = console(120, 40)
    text = " ".join(
        " ".join(drawn(screen(View(STATUS, memory, None, None), on, fill=True), on)).split()
    )
    assert "memory pressure -" in text


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_screen_of_all_guests_fits_and_has_the_worst_first(width: int, height: int) -> None:
    guests = {
        pid: Guest(replace(STATUS, pid=pid, vm=f"vm-{pid}"), replace(RATES, violations=pid % 97))
        for pid in range(4000, 4100)
    }
    on = console(width, height)
    lines = drawn(overview(guests, PRESSURE, on, fill=True), on)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "100 attached" in lines[0]
    assert "memory pressure some 12%" in lines[0]
    assert "96/s" in lines[3]
    assert lines[-1].startswith("and ")
    assert len(drawn(overview(guests, PRESSURE, on, fill=False), on)) == 103


def test_a_guest_without_a_name_and_a_host_without_guests_are_drawn() -> None:
    on = console(80, 24)
    lines = drawn(
        overview({1: Guest(replace(STATUS, pid=1, vm=""), None)}, None, on, fill=True), on
    )
    assert lines[3].split()[:2] == ["1", "-"]
    assert "0 attached" in drawn(overview({}, None, on, fill=True), on)[0]


def test_a_name_that_would_move_the_cursor_is_printed_as_text() -> None:
    on = console(80, 24)
    guest = Guest(replace(STATUS, vm="a\x1b[2Jb\n"), None)
    assert "\x1b[2J" not in "".join(drawn(overview({1: guest}, None, on, fill=True), on))


def test_pressure_is_read_as_the_kernel_writes_it() -> None:
    text = (
        "some avg10=12.34 avg60=0.10 avg300=0.00 total=987\n"
        "full avg10=0.40 avg60=0.00 avg300=0.00 total=12\n"
    )
    assert parse_pressure(text) == Pressure(12.34, 0.4)
    assert parse_pressure(text[:-1]) == Pressure(12.34, 0.4)


@pytest.mark.parametrize(
    "text", ["", "some", "some avg10=1.00 avg60=0.00\n", "some avg10=x \nfull avg10=0.00 \n"]
)
def test_what_is_no_pressure_is_none(text: str) -> None:
    assert parse_pressure(text) is None


def test_the_hosts_own_pressure_is_a_share_where_it_is_counted() -> None:
    now = memory_pressure()
    assert (now is not None) == Path("/proc/pressure/memory").exists()
    assert now is None or 0 <= now.full <= now.some <= 100
