# SPDX-License-Identifier: GPL-2.0-or-later
"""How fragmented the balloon is, and what other encodings of it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from uffdballoon.bench import plots
from uffdballoon.bench.drawing import refuse_unless_picture
from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.cli.types import PID, SIZE
from uffdballoon.daemon import client
from uffdballoon.errors import UsageError
from uffdballoon.model.recording import Recording
from uffdballoon.model.records.encoding import parse, to_json
from uffdballoon.model.records.statistics import (
    FragmentCounts,
    RecordedBalloon,
    RecordedTrace,
    SimulatedGuest,
    Simulation,
    Statistics,
)
from uffdballoon.model.sizes import format_size
from uffdballoon.model.tracing import write_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENCODINGS = {
    "pfn_array": "array of 32-bit page numbers (virtio-balloon's)",
    "bitmap": "bitmap from the first page to the last",
    "range_list": "list of (page number, length)",
    "order_list": "list of power-of-two blocks",
}
_LARGE = (100 << 30, 1 << 40)


@click.command()
@click.argument("pid", type=PID, required=False)
@click.option("--record", "record_to", metavar="FILE", help="Keep the balloon's runs there.")
@click.option(
    "--trace", "trace_to", metavar="FILE", help="Keep the pages of its latest changes there."
)
@click.option("--simulate", metavar="FILE", help="In place of PID: larger guests like that one.")
@click.option(
    "--ram",
    "sizes",
    type=SIZE,
    multiple=True,
    help="With --simulate: of what size; 100G and 1T by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.option("--plot", "plot_to", metavar="FILE", help="Draw them there (.png, .svg).")
def stats(  # noqa: PLR0913 - what is shown, and what is kept
    pid: int | None,
    *,
    record_to: str | None,
    trace_to: str | None,
    simulate: str | None,
    sizes: Sequence[int],
    as_json: bool,
    plot_to: str | None,
) -> None:
    """Show how fragmented the balloon of the attached PID is.

    Shows the runs that the balloon is made of, and those of each inflate. Shows what it
    would cost to tell of them otherwise than page by page. --record keeps the runs;
    --simulate tells the same of guests that are larger than the recorded one. --trace keeps
    the pages of each inflate and deflate, for `uffdballoon bench encodings --trace FILE`.

    Example: uffdballoon stats 4711 --record balloon.json, and then
    uffdballoon stats --simulate balloon.json --ram 128G --plot balloon.png
    """
    _refuse_contradictions(pid, record_to or trace_to, simulate, sizes)
    if plot_to is not None:
        plots.require()
        refuse_unless_picture(plot_to)
    found: Statistics | Simulation
    if pid is not None:
        found = client.request(pid, "stats", Statistics)
        _keep(pid, record_to, trace_to)
    else:
        found = _simulated(str(simulate), sizes or _LARGE)
    pictures = _pictures(found)
    if plot_to is not None:
        plots.plot_fragments(pictures, plot_to)
    if as_json:
        print_json(found)
        return
    inflates = found.inflates if isinstance(found, Statistics) else ()
    numbered = {f"inflate {number}": inflate for number, inflate in enumerate(inflates, start=1)}
    for title, fragments in (pictures | numbered).items():
        _show(title, fragments)


def _refuse_contradictions(
    pid: int | None, kept_in: str | None, simulate: str | None, sizes: Sequence[int]
) -> None:
    if (pid is None) == (simulate is None) or (sizes and not simulate):
        raise UsageError(
            "stats takes either a PID or --simulate FILE",
            why="--ram goes with --simulate, and nothing else does without a PID",
            hint="uffdballoon stats PID, or uffdballoon stats --simulate FILE --ram 128G",
        )
    if simulate is not None and kept_in is not None:
        raise UsageError(
            "--simulate goes with neither --record nor --trace",
            why="what is simulated is no balloon of a guest that runs",
            hint="uffdballoon stats PID --record FILE, and --simulate FILE then",
        )


def _simulated(path: str, sizes: Sequence[int]) -> Simulation:
    try:
        recording = Recording.parse(parse(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path}",
            why=getattr(error, "strerror", None) or f"not JSON: {error}",
            hint="give a file that `uffdballoon stats PID --record FILE` wrote",
        ) from error
    for size in sizes:
        if size < recording.ram_bytes:
            raise UsageError(
                f"--ram {format_size(size)} is less than the recorded guest has",
                why=f"that has {format_size(recording.ram_bytes)}, and larger ones are simulated",
                hint="give a larger --ram",
            )
    return Simulation(
        recorded_ram_bytes=recording.ram_bytes,
        guests=tuple(
            SimulatedGuest(ram_bytes=size, balloon=recording.tiled(size).counts())
            for size in (recording.ram_bytes, *sizes)
        ),
    )


def _pictures(found: Statistics | Simulation) -> dict[str, FragmentCounts]:
    """Return what is drawn, by its title."""
    if isinstance(found, Statistics):
        return {"the balloon": found.balloon}
    recorded, *larger = found.guests
    pictures = {f"guest of {format_size(recorded.ram_bytes)}, recorded": recorded.balloon}
    for guest in larger:
        pictures[f"guest of {format_size(guest.ram_bytes)}, simulated"] = guest.balloon
    return pictures


def _keep(pid: int, record_to: str | None, trace_to: str | None) -> None:
    if record_to is not None:
        recorded = client.request(pid, "runs", RecordedBalloon)
        _write(record_to, to_json(recorded) + "\n")
        say(f"recorded {len(recorded.runs)} runs in {record_to}")
    if trace_to is not None:
        traced = client.request(pid, "changes", RecordedTrace)
        _write(trace_to, write_trace(traced))
        more = f"; {traced.left_out} before them were too much" if traced.left_out else ""
        say(f"recorded {len(traced.changes)} changes of the balloon in {trace_to}{more}")


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}", why=error.strerror or "", hint="give a file in a directory"
        ) from error


def _show(title: str, fragments: FragmentCounts) -> None:
    click.echo(
        f"{title}: {fragments.pages} pages in {fragments.runs} runs, "
        f"{fragments.messages} messages of the driver"
    )
    if not fragments.pages:
        return
    print_table(
        ("run of pages", "runs"),
        [(f"{length}+", str(count)) for length, count in fragments.run_lengths.items()],
    )
    print_table(
        ("order", "blocks"), [(str(order), str(count)) for order, count in fragments.orders.items()]
    )
    print_table(
        ("encoding", "on the wire"),
        [
            (words, format_size(getattr(fragments.wire_bytes, name)))
            for name, words in _ENCODINGS.items()
        ],
    )
