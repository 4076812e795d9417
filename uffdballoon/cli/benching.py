# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmarks have in common on the command line: options, and how a result is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uffdballoon.bench import plots
from uffdballoon.bench.drawing import refuse_unless_picture
from uffdballoon.cli.output import print_json, print_table
from uffdballoon.cli.types import SIZE
from uffdballoon.errors import UsageError
from uffdballoon.lab.qemu import Accel
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.records.encoding import to_json
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _writable(_context: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    """Refuse at once what could only fail after minutes of measuring; leave nothing there."""
    if path in (None, "-"):
        return path
    is_new = not Path(path).exists()
    try:
        with Path(path).open("a", encoding="utf-8"):
            pass
        if is_new:
            Path(path).unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}", why=error.strerror or "", hint="give a file in a directory"
        ) from error
    return path


def _drawable(context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    if path is not None:
        plots.require()
        refuse_unless_picture(path)
    return _writable(context, parameter, path)


json_to_option = click.option(
    "--json", "json_to", metavar="FILE|-", callback=_writable, help="Write the result there."
)
plot_to_option = click.option(
    "--plot", "plot_to", metavar="FILE", callback=_drawable, help="Draw it; needs matplotlib."
)


def rounds_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that says how often each is measured; one more warms up."""
    return click.option("--rounds", type=click.IntRange(1), default=default, show_default=True)


accel_option = click.option(
    "--accel",
    type=click.Choice([accel.value for accel in Accel]),
    help="Of the guest; KVM where there is one.",
)


def size_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that says how large the guest is."""
    return click.option(
        "--size",
        type=SIZE,
        default=default,
        show_default=format_size(default),
        help="Memory of the guest, half of which is given up.",
    )


def whole_blocks(size: int) -> int:
    """Round a size down to whole blocks of 2 MiB; raise UsageError where that is nothing."""
    if size < HUGE_BYTES:
        raise UsageError(
            f"{format_size(size)} is too little",
            why="it is measured on huge pages of 2 MiB",
            hint="give a --size of 2M or more",
        )
    return size // HUGE_BYTES * HUGE_BYTES


def give(
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
