# SPDX-License-Identifier: GPL-2.0-or-later
"""Run benchmarks; each compares with a baseline in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uffdballoon.bench import (
    attaching,
    collapsing,
    fault_latency,
    following,
    granularity,
    planning,
    plots,
    reclaiming,
    refill,
    steady,
    zapping,
)
from uffdballoon.bench.guest_latency import measure_guest
from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.cli.types import SIZE
from uffdballoon.errors import UsageError
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.qemu import Accel
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.records.encoding import to_json
from uffdballoon.model.sizes import format_size

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
    for line in HOST.put_right():
        say(line)


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


@bench.command("attach")
@_json
@_plot
@_rounds(attaching.DEFAULT_ROUNDS)
@click.option(
    "--size", type=SIZE, default="1G", show_default=True, help="Every second page of it is zapped."
)
@click.option(
    "--guest",
    "guests",
    type=click.Choice([accel.value for accel in Accel]),
    multiple=True,
    default=[accel.value for accel in Accel],
    show_default=True,
)
def attach(
    json_to: str | None, plot_to: str | None, *, rounds: int, size: int, guests: Sequence[str]
) -> None:
    """Count whom attaching and zapping stop, and time how long, and QEMU's monitor meanwhile.

    Example: uffdballoon bench attach --guest kvm --rounds 50
    """
    result = attaching.run(
        guests=[Accel(guest) for guest in guests],
        rounds=rounds,
        size_bytes=_whole_blocks(size),
        progress=say,
    )
    _give(result, json_to, attaching.rows, attaching.HEADER)
    if plot_to:
        plots.plot_stops(result, plot_to)


@bench.command("refill")
@_json
@_plot
@_rounds(refill.DEFAULT_ROUNDS)
@click.option(
    "--size", type=SIZE, default="256M", show_default=True, help="In whole blocks of 2 MiB."
)
def refill_(json_to: str | None, plot_to: str | None, *, rounds: int, size: int) -> None:
    """Time how memory comes back to a guest that may have it."""
    result = refill.run(rounds=rounds, size_bytes=_whole_blocks(size), progress=say)
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


@bench.command("balloon")
@_json
@_plot
@_rounds(following.DEFAULT_ROUNDS)
@click.option("--size", type=SIZE, default="512M", show_default=True, help="Of the guest's 1 GiB.")
@click.option(
    "--observer",
    "observers",
    type=click.Choice(following.OBSERVERS),
    multiple=True,
    default=("trace",),
    show_default=True,
)
def balloon(
    json_to: str | None,
    plot_to: str | None,
    *,
    rounds: int,
    size: int,
    observers: Sequence[str],
) -> None:
    """Time inflates and deflates of a Linux guest, followed and not.

    Example: uffdballoon bench balloon --observer trace --observer event --rounds 3
    """
    result = following.run(observers=observers, size_bytes=size, rounds=rounds, progress=say)
    _give(
        result,
        json_to,
        lambda r: [
            (
                s["name"],
                f"{s['inflate_s']:.2f}",
                f"{s['deflate_s']:.2f}",
                *(
                    str(s.get(key, "-"))
                    for key in ("lost_records", "arm_us_max", "unaccounted_bytes", "disagreements")
                ),
            )
            for s in r["series"]
        ],
        (
            "observer",
            "inflate s",
            "deflate s",
            "lost records",
            "arming at most us",
            "unaccounted",
            "disagreements",
        ),
    )
    if plot_to:
        plots.plot_bars(result, plot_to, value="inflate_s")


@bench.command("steady")
@_json
@_plot
@_rounds(steady.DEFAULT_ROUNDS)
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(min=0),
    default=steady.DEFAULT_IDLE_S,
    show_default=True,
    help="Seconds for which the manager of a quiet guest is watched.",
)
def steady_(json_to: str | None, plot_to: str | None, *, rounds: int, idle_s: float) -> None:
    """Measure a loop on memory that a Linux guest owns, enforced and not attached."""
    result = steady.run(rounds=rounds, idle_s=idle_s, progress=say)
    idle = result["idle"]
    _give(
        result,
        json_to,
        lambda r: [
            (
                s["name"],
                f"{s['sequential_bytes_per_s'] / (1 << 30):.3f}",
                f"{s['random_per_s'] / 1e6:.3f}",
                str(max(map(abs, s["huge_bytes_change"]))),
            )
            for s in r["series"]
        ],
        ("guest", "sequential GiB/s", "random M/s", "change of huge pages, bytes"),
    )
    say(f"idle for {idle['seconds']:g} s: {idle['voluntary_switches']} wake-ups of the manager")
    if plot_to:
        plots.plot_bars(result, plot_to, value="random_per_s")


_accel = click.option(
    "--accel",
    type=click.Choice([accel.value for accel in Accel]),
    help="Of the guest; KVM where there is one.",
)


def _size(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--size",
        type=SIZE,
        default=default,
        show_default=format_size(default),
        help="Memory of the guest, half of which is given up.",
    )


@bench.command("reclaim")
@_json
@_plot
@_size(reclaiming.DEFAULT_SIZE_BYTES)
@_accel
def reclaim(json_to: str | None, plot_to: str | None, *, size: int, accel: str | None) -> None:
    """Count what of a fragmented balloon comes back to the host, and how soon."""
    result = reclaiming.run(
        size_bytes=_whole_blocks(size), accel=Accel(accel) if accel else None, progress=say
    )
    _give(result, json_to, reclaiming.rows, reclaiming.HEADER)
    if plot_to:
        plots.plot_reclaim(result, plot_to)


@bench.command("khugepaged")
@_json
@_plot
@_size(collapsing.DEFAULT_SIZE_BYTES)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=collapsing.DEFAULT_SECONDS,
    show_default=True,
)
@_accel
def khugepaged(
    json_to: str | None, plot_to: str | None, *, size: int, seconds: float, accel: str | None
) -> None:
    """Watch khugepaged fill a fragmented balloon again, and not do so where it is armed.

    Changes the host's tunings of khugepaged meanwhile, and puts them back.
    """
    result = collapsing.run(
        size_bytes=_whole_blocks(size),
        seconds=seconds,
        accel=Accel(accel) if accel else None,
        progress=say,
    )
    _give(
        result,
        json_to,
        lambda r: [
            (
                s["name"],
                str(r["ballooned_bytes"] >> 20),
                f"{s['grew_bytes'] / (1 << 20):.1f}",
                "never" if s["back_s"] is None else f"{s['back_s']:.1f}",
            )
            for s in r["series"]
        ],
        ("who", "ballooned, MiB", "Rss grew, MiB", "nine tenths back after, s"),
    )
    if plot_to:
        plots.plot_khugepaged(result, plot_to)


def _whole_blocks(size: int) -> int:
    if size < HUGE_BYTES:
        raise UsageError(
            f"{format_size(size)} is too little",
            why="it is measured on huge pages of 2 MiB",
            hint="give a --size of 2M or more",
        )
    return size // HUGE_BYTES * HUGE_BYTES


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
        Path(json_to).write_text(to_json(result, indent=1) + "\n", encoding="utf-8")


@bench.command("guest")
@_json
@_plot
@_size(granularity.DEFAULT_SIZE_BYTES)
@_rounds(granularity.DEFAULT_ROUNDS)
@click.option(
    "--accel",
    type=click.Choice([accel.value for accel in Accel]),
    default=Accel.TCG.value,
    show_default=True,
    help="Of the guest; a KVM that is itself emulated hides what the host's pages cost.",
)
def guest(json_to: str | None, plot_to: str | None, *, size: int, rounds: int, accel: str) -> None:
    """Measure what giving up half of its memory, in 4k or 2 MiB pieces, costs a guest."""
    result = granularity.run(
        size_bytes=size,
        rounds=rounds,
        accel=Accel(accel),
        progress=say,
    )
    _give(
        result,
        json_to,
        lambda r: [
            (
                s["name"],
                f"{s['seconds_before'] * 1e3:.2f}",
                f"{s['seconds_after'] * 1e3:.2f}",
                f"{s['speed_kept']:.3f}",
                format_size(s["split_bytes"]),
            )
            for s in r["series"]
        ],
        ("pieces", "before ms", "after ms", "speed kept", "huge pages split"),
    )
    if plot_to:
        plots.plot_bars(result, plot_to, value="speed_kept")
