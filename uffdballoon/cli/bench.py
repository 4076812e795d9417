# SPDX-License-Identifier: GPL-2.0-or-later
"""Run benchmarks; each compares with a baseline in the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uffdballoon.bench import fault_latency, planning, plots, refill, zapping
from uffdballoon.bench.guest_latency import measure_guest
from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.errors import UsageError
from uffdballoon.lab.qemu import Accel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _writable(_context: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    """Refuse at once what could only fail after minutes of measuring."""
    if path in (None, "-"):
        return path
    try:
        with Path(path).open("a", encoding="utf-8"):
            return path
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}", why=error.strerror or "", hint="give a file in a directory"
        ) from error


def _drawable(context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    if path is not None:
        plots.require()
    return _writable(context, parameter, path)


_json = click.option(
    "--json", "json_to", metavar="FILE|-", callback=_writable, help="Write the result there."
)
_plot = click.option(
    "--plot", "plot_to", metavar="FILE", callback=_drawable, help="Draw it; needs matplotlib."
)
_MIN_SAMPLES = 1000


def _rounds(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that says how often each is measured; one more warms up."""
    return click.option("--rounds", type=click.IntRange(1), default=default, show_default=True)


@click.group()
def bench() -> None:
    """Measure on this machine; ratios travel, absolute times do not."""


@bench.command("fault-latency")
@_json
@_plot
@click.option(
    "--backing",
    "backings",
    type=click.Choice(list(fault_latency.SHAPES)),
    multiple=True,
    help="By default all.",
)
@click.option(
    "--threads", type=click.IntRange(1, 16), multiple=True, default=(1, 2), show_default=True
)
@click.option("--samples", type=click.IntRange(_MIN_SAMPLES), default=20_000, show_default=True)
@click.option(
    "--guest",
    "guests",
    type=click.Choice([accel.value for accel in Accel] + ["none"]),
    multiple=True,
    default=[accel.value for accel in Accel],
    show_default=True,
    help="Measure in a guest, too.",
)
def fault_latency_(
    json_to: str | None,
    plot_to: str | None,
    *,
    backings: Sequence[str],
    threads: Sequence[int],
    samples: int,
    guests: Sequence[str],
) -> None:
    """Time a touch of trapped memory, by who answers it.

    Example: uffdballoon bench fault-latency --backing anon-4k --threads 1 --plot latency.png
    """
    result = fault_latency.run(
        backings=backings or list(fault_latency.SHAPES),
        threads=threads,
        samples=samples,
        progress=say,
    )
    for guest in guests:
        if guest != "none":
            series = measure_guest(Accel(guest), samples=samples, progress=say)
            result["series"].extend(series)
    _give(result, json_to, _latency_rows, ("memory", "who", "access", "thr", *_LATENCY_COLUMNS))
    if plot_to:
        plots.plot_latencies(result, plot_to)


_LATENCY_COLUMNS = ("p50 us", "p90", "p99", "p99.9", "max", "faults/s", "p50 vs manpage")


def _latency_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    def group(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["backing"], row["access"], row["threads"]

    manpage = {group(row): row["p50_ns"] for row in result["series"] if row["name"] == "manpage"}
    keys = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")
    return [
        (
            row["backing"],
            row["name"],
            row["access"],
            str(row["threads"]),
            *(f"{row[key] / 1000:.2f}" for key in keys),
            str(row["faults_per_s"]),
            f"{row['p50_ns'] / manpage[group(row)]:.3f}",
        )
        for row in result["series"]
    ]


@bench.command("refill")
@_json
@_plot
@_rounds(refill.DEFAULT_ROUNDS)
def refill_(json_to: str | None, plot_to: str | None, *, rounds: int) -> None:
    """Time how 256 MiB come back to a guest that may have them."""
    result = refill.run(rounds=rounds, progress=say)
    _give(
        result,
        json_to,
        lambda r: [(s["pages"], s["name"], f"{s['gib_per_s']:.3f}") for s in r["series"]],
        ("pages", "who", "GiB/s"),
    )
    if plot_to:
        plots.plot_bars(result, plot_to, value="gib_per_s", group="pages")


@bench.command("zap")
@_json
@_plot
@_rounds(zapping.DEFAULT_ROUNDS)
def zap(json_to: str | None, plot_to: str | None, *, rounds: int) -> None:
    """Time a zap from outside, against a process that does it to itself."""
    result = zapping.run(rounds=rounds, progress=say)
    _give(
        result,
        json_to,
        lambda r: [
            (
                s["shape"],
                s["name"],
                str(s["ranges"]),
                str(s["pages_per_s"]),
                f"{s['gib_per_s']:.2f}",
                "-" if s["longest_stop_us"] is None else str(s["longest_stop_us"]),
            )
            for s in r["series"]
        ],
        ("shape", "who", "ranges", "pages/s", "GiB/s", "longest stop, us"),
    )
    if plot_to:
        plots.plot_bars(result, plot_to, value="gib_per_s", group="shape")


@bench.command("planner")
@_json
@_plot
def planner(json_to: str | None, plot_to: str | None) -> None:
    """Plan the windows of guests of 1 TiB and 16 TiB, and look pages up in them."""
    result = planning.run(progress=say)
    _give(
        result,
        json_to,
        lambda r: [
            (
                s["name"],
                f"{s['scratch_ns'] / 1e6:.1f}",
                f"{s['change_p50_ns'] / 1e3:.1f}",
                f"{s['change_max_ns'] / 1e3:.1f}",
                str(s["most_windows"]),
                f"{s['total_bytes'] / (1 << 20):.1f}",
                *(f"{s[f'lookup{kind}_ns']:.1f}" for kind in ("", "_dependent", "_local")),
            )
            for s in r["series"]
        ],
        (
            "guest",
            "from scratch, ms",
            "change p50, us",
            "max",
            "windows",
            "MiB",
            "look-up, ns",
            "dependent",
            "in 64 GiB",
        ),
    )
    if plot_to:
        plots.plot_bars(result, plot_to, value="scratch_ns")


def _give(
    result: dict[str, Any],
    json_to: str | None,
    rows: Callable[[dict[str, Any]], list[tuple[str, ...]]],
    header: Sequence[str],
) -> None:
    """Print the table and the ratios, or the JSON when that is to go to standard output."""
    if json_to == "-":
        print_json(result)
        return
    print_table(header, rows(result))
    print_table(("", ""), [(name, f"{value:.4g}") for name, value in result["ratios"].items()])
    if json_to is not None:
        Path(json_to).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
