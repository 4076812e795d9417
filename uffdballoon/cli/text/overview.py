# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of `top` for all guests that are attached: a line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from uffdballoon.cli.text.screen import pressure_words
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.printable import printable
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console, RenderableType

    from uffdballoon.cli.rates import Rates
    from uffdballoon.host.pressure import Pressure
    from uffdballoon.model.records.status import Status

_ABOVE = 3
"""Lines for the title and the head of the table."""
_COLUMNS = ("pid", "VM", "balloon", "of", "free", "violations", "held", "p50", "p99", "p99.9 us")
_NAME = 1


class Guest(NamedTuple):
    """What was seen of a guest; ``rates`` is None the first time."""

    status: Status
    rates: Rates | None


def overview(
    guests: Mapping[int, Guest], pressure: Pressure | None, console: Console, *, fill: bool
) -> RenderableType:
    """Draw a line for each guest, those with the most violations a second first."""
    title = Text.assemble(
        (f"uffdballoon: {len(guests)} attached", "bold"),
        f"  memory pressure {pressure_words(pressure)}",
        ("   q ends" if fill else "", "dim"),
    )
    title.truncate(console.width)
    ordered = sorted(guests.values(), key=_urgency)
    most = max(1, console.height - _ABOVE - 1) if fill else len(ordered)
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for number, name in enumerate(_COLUMNS):
        if number == _NAME:
            table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=16)
        else:
            table.add_column(name, no_wrap=True, justify="right")
    for guest in ordered[:most]:
        table.add_row(*_cells(guest))
    left_out = len(ordered) - most
    rest = [Text(f"and {left_out} more", style="dim")] if left_out > 0 else []
    return Group(title, Text(), table, *rest)


def _urgency(guest: Guest) -> tuple[float, int, int]:
    rate = guest.rates.violations if guest.rates else 0.0
    return (-rate, -guest.status.touches.violations, guest.status.pid)


def _cells(guest: Guest) -> tuple[str, ...]:
    status, rates = guest.status, guest.rates
    violations = str(status.touches.violations)
    if rates is not None:
        violations += f", {rates.violations:.0f}/s"
    balloon = format_size(status.ballooned_bytes)
    if rates is not None and (grown := round(rates.inflated_pages - rates.deflated_pages)):
        sign = "+" if grown > 0 else "-"
        balloon += f" {sign}{format_size(abs(grown) * PAGE_BYTES)}/s"
    latency = status.latency_ns
    return (
        str(status.pid),
        printable(status.vm) or "-",
        balloon,
        format_size(status.ram_bytes),
        format_size(status.reclaimed_bytes),
        violations,
        str(len(status.held)),
        *(f"{ns / 1000:.1f}" if ns else "-" for ns in (latency.p50, latency.p99, latency.p999)),
    )
