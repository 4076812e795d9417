# SPDX-License-Identifier: GPL-2.0-or-later
"""How fragmented the balloon is, and what other encodings of it would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uffdballoon.bench import plots
from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.cli.types import PID, SIZE
from uffdballoon.daemon import client
from uffdballoon.errors import UsageError
from uffdballoon.model.recording import Recording
from uffdballoon.model.sizes import format_size

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
@click.option("--simulate", metavar="FILE", help="In place of PID: larger guests like that one.")
@click.option(
    "--ram",
    "sizes",
    type=SIZE,
    multiple=True,
    help="With --simulate: of what size; 100G and 1T by default.",
)
@click.option("--json", "as_json", is_flag=True)
@click.option("--plot", "plot_to", metavar="FILE", help="Draw them there (.png, .svg).")
def stats(
    pid: int | None,
    *,
    record_to: str | None,
    simulate: str | None,
    sizes: Sequence[int],
    as_json: bool,
    plot_to: str | None,
) -> None:
    """Show the runs that the balloon of the attached PID is made of, and each inflate was.

    And what it would cost to tell of them otherwise than page by page. --record keeps the
    runs; --simulate tells the same of guests that are larger than the recorded one.

    Example: uffdballoon stats 4711 --record balloon.json, and then
    uffdballoon stats --simulate balloon.json --ram 128G --plot balloon.png
    """
    if (pid is None) == (simulate is None) or (sizes and not simulate):
        raise UsageError(
            "stats takes either a PID or --simulate FILE",
            why="--ram goes with --simulate, and nothing else does without a PID",
            hint="uffdballoon stats PID, or uffdballoon stats --simulate FILE --ram 128G",
        )
    if plot_to is not None:
        plots.require()
    if pid is not None:
        found = client.request(pid, "stats")
        pictures = {"the balloon": found["balloon"]}
        if record_to is not None:
            runs = client.request(pid, "runs")
            _write(record_to, Recording.parse(runs).as_dict())
            say(f"recorded {len(runs['runs'])} runs in {record_to}")
    else:
        found, pictures = _simulated(str(simulate), sizes or _LARGE)
    if plot_to is not None:
        plots.plot_fragments(pictures, plot_to)
    if as_json:
        print_json(found)
        return
    for title, fragments in pictures.items():
        _show(title, fragments)
    for number, inflate in enumerate(found.get("inflates", ()), start=1):
        _show(f"inflate {number}", inflate)


def _simulated(path: str, sizes: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        recording = Recording.parse(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path}",
            why=getattr(error, "strerror", None) or f"not JSON: {error}",
            hint="give a file that `uffdballoon stats PID --record FILE` wrote",
        ) from error
    guests = [
        {"ram_bytes": size, "balloon": recording.tiled(size).as_dict()}
        for size in (recording.ram_bytes, *sizes)
    ]
    titles = [f"guest of {format_size(recording.ram_bytes)}, recorded"]
    titles += [f"guest of {format_size(size)}, simulated" for size in sizes]
    pictures = {title: g["balloon"] for title, g in zip(titles, guests, strict=True)}
    return {"recorded_ram_bytes": recording.ram_bytes, "guests": guests}, pictures


def _write(path: str, value: dict[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(value) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}", why=error.strerror or "", hint="give a file in a directory"
        ) from error


def _show(title: str, fragments: dict[str, Any]) -> None:
    click.echo(
        f"{title}: {fragments['pages']} pages in {fragments['runs']} runs, "
        f"{fragments['messages']} messages of the driver"
    )
    if not fragments["pages"]:
        return
    print_table(
        ("run of pages", "runs"),
        [(f"{length}+", str(count)) for length, count in fragments["run_lengths"].items()],
    )
    print_table(
        ("order", "blocks"), [(order, str(count)) for order, count in fragments["orders"].items()]
    )
    print_table(
        ("encoding", "on the wire"),
        [(words, format_size(fragments["wire_bytes"][name])) for name, words in _ENCODINGS.items()],
    )
