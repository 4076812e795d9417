# SPDX-License-Identifier: GPL-2.0-or-later
"""Run benchmarks; each compares with a baseline in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uffdballoon.bench import (
    attaching,
    collapsing,
    encodings,
    fault_latency,
    following,
    granularity,
    limiting,
    managing,
    planning,
    plots,
    reclaiming,
    refill,
    steady,
    zapping,
)
from uffdballoon.bench.guest_latency import measure_guest
from uffdballoon.cli.benching import (
    accel_option,
    give,
    json_to_option,
    plot_to_option,
    rounds_option,
    size_option,
    whole_blocks,
)
from uffdballoon.cli.output import say
from uffdballoon.cli.types import SIZE
from uffdballoon.errors import UsageError
from uffdballoon.host.privileges import refuse_unless_root
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.left_behind import tell_left_behind
from uffdballoon.lab.qemu import Accel
from uffdballoon.model.sizes import format_size
from uffdballoon.model.tracing import read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.records.statistics import RecordedTrace


_MIN_SAMPLES = 1000


class _AsRoot(click.Command):
    """A benchmark of what only root may do; its help is for everybody."""

    def invoke(self, ctx: click.Context) -> object:
        refuse_unless_root(f"`bench {self.name}`")
        for line in [*HOST.put_right(), *tell_left_behind()]:
            say(line)
        return super().invoke(ctx)


class _Benchmarks(click.Group):
    command_class = _AsRoot


@click.group(cls=_Benchmarks)
def bench() -> None:
    """Measure on this machine; ratios travel, absolute times do not."""


@bench.command("fault-latency")
@json_to_option
@plot_to_option
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

    Of several kinds of memory --plot draws a file each, such as latency-anon-4k.png.

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
    give(result, json_to, fault_latency.rows, fault_latency.HEADER)
    if plot_to:
        plots.draw("fault-latency", result, plot_to)


@bench.command("attach")
@json_to_option
@plot_to_option
@rounds_option(attaching.DEFAULT_ROUNDS)
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
    """Count whom an attach and a zap stop, and for how long.

    Times QEMU's monitor meanwhile, too.

    Example: uffdballoon bench attach --guest kvm --rounds 50
    """
    result = attaching.run(
        guests=[Accel(guest) for guest in guests],
        rounds=rounds,
        size_bytes=whole_blocks(size),
        progress=say,
    )
    give(result, json_to, attaching.rows, attaching.HEADER)
    if plot_to:
        plots.draw("attach", result, plot_to)


@bench.command("refill")
@json_to_option
@plot_to_option
@rounds_option(refill.DEFAULT_ROUNDS)
@click.option(
    "--size", type=SIZE, default="256M", show_default=True, help="In whole blocks of 2 MiB."
)
def refill_(json_to: str | None, plot_to: str | None, *, rounds: int, size: int) -> None:
    """Time how memory comes back to a guest that may have it."""
    result = refill.run(rounds=rounds, size_bytes=whole_blocks(size), progress=say)
    give(result, json_to, refill.rows, refill.HEADER)
    if plot_to:
        plots.draw("refill", result, plot_to)


@bench.command("zap")
@json_to_option
@plot_to_option
@rounds_option(zapping.DEFAULT_ROUNDS)
@click.option(
    "--size",
    type=SIZE,
    default="1G",
    show_default=True,
    help="Of the memory, in whole blocks of 2 MiB.",
)
def zap(json_to: str | None, plot_to: str | None, *, rounds: int, size: int) -> None:
    """Time a zap from outside, against one from inside."""
    result = zapping.run(rounds=rounds, size_bytes=whole_blocks(size), progress=say)
    give(result, json_to, zapping.rows, zapping.HEADER)
    if plot_to:
        plots.draw("zap", result, plot_to)


@bench.command("planner", cls=click.Command)
@json_to_option
@plot_to_option
def planner(json_to: str | None, plot_to: str | None) -> None:
    """Time the planning of windows in guests of 1 and 16 TiB.

    Times the look-up of pages in them, too.
    """
    result = planning.run(progress=say)
    give(result, json_to, planning.rows, planning.HEADER)
    if plot_to:
        plots.draw("planner", result, plot_to)


@bench.command("encodings", cls=click.Command)
@json_to_option
@plot_to_option
@click.option(
    "--ram",
    "sizes",
    type=SIZE,
    multiple=True,
    help="Of a guest that is simulated; 100G, 256G, 512G and 1T by default.",
)
@click.option(
    "--trace",
    "traces",
    metavar="FILE",
    multiple=True,
    help="Replay what `stats PID --trace FILE` kept; others are simulated where --ram says so.",
)
def encodings_(
    json_to: str | None, plot_to: str | None, *, sizes: Sequence[int], traces: Sequence[str]
) -> None:
    """Reckon what a balloon costs on the wire.

    Guests are simulated with a buddy allocator, their memory fragmented to several degrees.
    Compares virtio's array of page numbers with a bitmap and with lists.

    Example: uffdballoon bench encodings --ram 128G --ram 2T --plot encodings.png
    """
    if not sizes and not traces:
        sizes = encodings.DEFAULT_SIZES
    recorded = {Path(path).name: _read_trace(path) for path in traces}
    result = encodings.run(sizes=sizes, traces=recorded, progress=say)
    give(result, json_to, encodings.rows, encodings.HEADER)
    if plot_to:
        plots.draw("encodings", result, plot_to)


def _read_trace(path: str) -> RecordedTrace:
    try:
        return read_trace(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {path}",
            why=getattr(error, "strerror", None) or "it is no text",
            hint="give a file that `uffdballoon stats PID --trace FILE` wrote",
        ) from error


@bench.command("balloon")
@json_to_option
@plot_to_option
@rounds_option(following.DEFAULT_ROUNDS)
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
    """Time a Linux guest's inflates and deflates.

    They are followed and not followed, in turns.

    Example: uffdballoon bench balloon --observer trace --observer event --rounds 3
    """
    result = following.run(observers=observers, size_bytes=size, rounds=rounds, progress=say)
    give(result, json_to, following.rows, following.HEADER)
    if plot_to:
        plots.draw("balloon", result, plot_to)


@bench.command("steady")
@json_to_option
@plot_to_option
@rounds_option(steady.DEFAULT_ROUNDS)
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(min=0),
    default=steady.DEFAULT_IDLE_S,
    show_default=True,
    help="Seconds for which the manager of a quiet guest is watched.",
)
def steady_(json_to: str | None, plot_to: str | None, *, rounds: int, idle_s: float) -> None:
    """Measure a loop on memory that a Linux guest owns.

    The guest is enforced and not attached, in turns.
    """
    result = steady.run(rounds=rounds, idle_s=idle_s, progress=say)
    idle = result["idle"]
    give(result, json_to, steady.rows, steady.HEADER)
    say(f"idle for {idle['seconds']:g} s: {idle['voluntary_switches']} wake-ups of the manager")
    if plot_to:
        plots.draw("steady", result, plot_to)


@bench.command("reclaim")
@json_to_option
@plot_to_option
@size_option(reclaiming.DEFAULT_SIZE_BYTES)
@accel_option
def reclaim(json_to: str | None, plot_to: str | None, *, size: int, accel: str | None) -> None:
    """Count how much of a fragmented balloon the host gets back.

    And how soon.
    """
    result = reclaiming.run(
        size_bytes=whole_blocks(size), accel=Accel(accel) if accel else None, progress=say
    )
    give(result, json_to, reclaiming.rows, reclaiming.HEADER)
    if plot_to:
        plots.draw("reclaim", result, plot_to)


@bench.command("khugepaged")
@json_to_option
@plot_to_option
@size_option(collapsing.DEFAULT_SIZE_BYTES)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=collapsing.DEFAULT_SECONDS,
    show_default=True,
)
@accel_option
def khugepaged(
    json_to: str | None, plot_to: str | None, *, size: int, seconds: float, accel: str | None
) -> None:
    """Watch whether khugepaged fills a fragmented balloon.

    It does where nothing is armed, and does not where it is. Changes the host's tunings of
    khugepaged meanwhile, and puts them back.
    """
    result = collapsing.run(
        size_bytes=whole_blocks(size),
        seconds=seconds,
        accel=Accel(accel) if accel else None,
        progress=say,
    )
    give(result, json_to, collapsing.rows, collapsing.HEADER)
    if plot_to:
        plots.draw("khugepaged", result, plot_to)


@bench.command("guest")
@json_to_option
@plot_to_option
@size_option(granularity.DEFAULT_SIZE_BYTES)
@rounds_option(granularity.DEFAULT_ROUNDS)
@click.option(
    "--accel",
    type=click.Choice([accel.value for accel in Accel]),
    default=Accel.TCG.value,
    show_default=True,
    help="Of the guest; a KVM that is itself emulated hides what the host's pages cost.",
)
def guest(json_to: str | None, plot_to: str | None, *, size: int, rounds: int, accel: str) -> None:
    """Measure what giving up half of its memory costs a guest.

    It gives it up in pieces of 4k, and of 2 MiB.
    """
    result = granularity.run(
        size_bytes=size,
        rounds=rounds,
        accel=Accel(accel),
        progress=say,
    )
    give(result, json_to, granularity.rows, granularity.HEADER)
    if plot_to:
        plots.draw("guest", result, plot_to)


@bench.command("limit")
@json_to_option
@plot_to_option
@click.option(
    "--size",
    type=SIZE,
    default=limiting.DEFAULT_SIZE_BYTES,
    show_default="512M",
    help="Of the guest's RAM; half of it is the limit.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1),
    default=limiting.DEFAULT_SECONDS,
    show_default=True,
    help="For which the guest uses its memory.",
)
def limit(json_to: str | None, plot_to: str | None, *, size: int, seconds: int) -> None:
    """Give a Linux guest 1.2 times its limit to do.

    It is held to half of its RAM by its balloon, under cap and throttle, and by a memory cgroup.

    Example: uffdballoon bench limit --size 1G --json limit.json
    """
    if size < limiting.LEAST_SIZE_BYTES:
        raise UsageError(
            f"--size {format_size(size)} is too little",
            why=f"a Linux guest lives with half of {format_size(limiting.LEAST_SIZE_BYTES)}",
            hint="give such as 512M",
        )
    result = limiting.run(size_bytes=whole_blocks(size), seconds=seconds, progress=say)
    give(result, json_to, limiting.rows, limiting.HEADER)
    if plot_to:
        plots.draw("limit", result, plot_to)


@bench.command("manager")
@json_to_option
@plot_to_option
@rounds_option(managing.DEFAULT_ROUNDS)
@click.option(
    "--fragments",
    type=click.IntRange(1),
    default=managing.DEFAULT_FRAGMENTS,
    show_default=True,
    help="Single pages in the balloon; the guest needs none of the memory.",
)
@click.option(
    "--inflate",
    "inflate_bytes",
    type=SIZE,
    default="1G",
    show_default=True,
    help="In single pages.",
)
@click.option(
    "--violations", type=click.IntRange(2), default=managing.DEFAULT_VIOLATIONS, show_default=True
)
@accel_option
def manager(  # noqa: PLR0913 - the size of each load
    json_to: str | None,
    plot_to: str | None,
    *,
    rounds: int,
    fragments: int,
    inflate_bytes: int,
    violations: int,
    accel: str | None,
) -> None:
    """Time what a manager answers while it is busy.

    Example: uffdballoon bench manager --fragments 1000000 --inflate 256M --violations 50000
    """
    result = managing.run(
        fragments=fragments,
        inflate_bytes=whole_blocks(inflate_bytes),
        violations=violations,
        rounds=rounds,
        accel=Accel(accel) if accel else None,
        progress=say,
    )
    followers = result["followers"]
    give(result, json_to, managing.rows, managing.HEADER)
    say(
        f"of {followers['violations']:,} violations the reader got {followers['reader']['read']:,} "
        f"and was told of {followers['reader']['missed']:,} that it missed"
    )
    if plot_to:
        plots.draw("manager", result, plot_to)
