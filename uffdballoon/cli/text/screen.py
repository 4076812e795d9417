# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of `top`: counters, and the guest's memory beside or below them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from uffdballoon.cli.text.map import Paper, picture
from uffdballoon.cli.text.status import answered_by, nominal_bytes, target_words
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from uffdballoon.cli.rates import Rates
    from uffdballoon.host.pressure import Pressure
    from uffdballoon.model.blockmap import BlockMap
    from uffdballoon.model.records.status import Status

_COUNTERS_WIDTH = 40
_BESIDE_FROM = 100
"""Columns from which the map has its place beside the counters."""
_LEGEND_LINES = 5
_LEGEND_LINES_NARROW = 8
_TWO_ABREAST_FROM = 76


@dataclass(frozen=True)
class View:
    """What was seen at one time; ``rates`` is None the first time.

    ``pressure`` is the host's, None where it does not count any.
    """

    status: Status
    blocks: BlockMap
    rates: Rates | None
    pressure: Pressure | None


def counter_rows(view: View) -> list[tuple[str, str]]:
    """Return (name, value) for each counter."""
    status, rates = view.status, view.rates
    touches, latency = status.touches, status.latency_ns
    ram = status.ram_bytes
    return [
        ("in the balloon", _share(status.ballooned_bytes, ram)),
        ("reclaimed", _share(status.reclaimed_bytes, ram)),
        (
            "given up",
            _pages(status.inflated_pages_total, rates.inflated_pages if rates else None),
        ),
        (
            "taken back",
            _pages(status.deflated_pages_total, rates.deflated_pages if rates else None),
        ),
        ("violations", _count(touches.violations, rates.violations if rates else None)),
        ("granted", _count(touches.granted, rates.granted if rates else None)),
        ("ordinary", _count(touches.ordinary, rates.ordinary if rates else None)),
        ("answered by", answered_by(status)),
        ("held", str(len(status.held))),
        ("answer p50, p99", _answer_time(latency.p50, latency.p99)),
        ("answer p99.9", _answer_time(latency.p999)),
        ("memory pressure", pressure_words(view.pressure)),
        ("windows", f"{status.windows}, {format_size(status.armed_bytes)} armed"),
        ("broken blocks", str(status.broken_blocks)),
        ("events dropped", str(status.events_dropped)),
    ]


def screen(view: View, console: Console, *, fill: bool) -> RenderableType:
    """Draw all of it; ``fill`` keeps it to the height of the screen."""
    beside = console.width >= _BESIDE_FROM
    width = console.width - (_COUNTERS_WIDTH + 2 if beside else 0)
    counters = _counters(counter_rows(view), abreast=not beside and width >= _TWO_ABREAST_FROM)
    lines = None
    if fill:
        taken = _LEGEND_LINES if width >= _TWO_ABREAST_FROM else _LEGEND_LINES_NARROW
        taken += 0 if beside else counters.row_count + 1
        lines = max(2, console.height - 2 - taken)
    paper = Paper.of(console, lines=lines)
    drawn = picture(view.blocks, Paper(width, paper.lines, paper.colour))
    title = Text.assemble(
        (f"uffdballoon {target_words(view.status)}", "bold"),
        f"  {format_size(nominal_bytes(view.status))}, {view.status.policy}, "
        f"{view.status.contract.kind.value}, observer {view.status.observer.value}",
        ("   q ends" if fill else "", "dim"),
    )
    title.truncate(console.width)
    if not beside:
        return Group(title, counters, Text(), drawn)
    table = Table.grid(padding=(0, 2))
    table.add_column(width=_COUNTERS_WIDTH)
    table.add_column(width=width)
    table.add_row(counters, drawn)
    return Group(title, Text(), table)


def _counters(rows: list[tuple[str, str]], *, abreast: bool) -> Table:
    """Set the counters in one column, or in two abreast."""
    table = Table.grid(padding=(0, 2))
    half = (len(rows) + 1) // 2 if abreast else len(rows)
    for left, right in itertools.zip_longest(rows[:half], rows[half:], fillvalue=("", "")):
        cells = (left, right) if abreast else (left,)
        table.add_row(*(part for name, value in cells for part in (Text(name, style="dim"), value)))
    return table


def pressure_words(pressure: Pressure | None) -> str:
    """Say for how much of the time some tasks of the host waited for memory, and all of them."""
    if pressure is None:
        return "-"
    return f"some {pressure.some:.0f}%, full {pressure.full:.0f}%"


def _answer_time(*times_ns: int) -> str:
    if not any(times_ns):
        return "-"
    return f"{', '.join(f'{ns / 1000:.1f}' for ns in times_ns)} us"


def _share(size_bytes: int, ram_bytes: int) -> str:
    return f"{format_size(size_bytes)} ({size_bytes / ram_bytes:.1%})"


def _pages(pages: int, rate: float | None) -> str:
    total = format_size(pages * PAGE_BYTES)
    return total if rate is None else f"{total}, {format_size(round(rate) * PAGE_BYTES)}/s"


def _count(value: int, rate: float | None) -> str:
    return f"{value}" if rate is None else f"{value}, {rate:.0f}/s"
