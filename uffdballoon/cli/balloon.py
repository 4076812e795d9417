# SPDX-License-Identifier: GPL-2.0-or-later
"""Inflate and deflate by hand."""

from __future__ import annotations

import click

from uffdballoon.cli.output import print_json, say
from uffdballoon.cli.text.changes import change_lines
from uffdballoon.cli.types import ADDRESS, PID, SIZE
from uffdballoon.daemon import client
from uffdballoon.errors import UsageError
from uffdballoon.model.granule import Granule
from uffdballoon.model.records.changes import ChangeReport, Released

_gpa = click.option(
    "--gpa",
    type=ADDRESS,
    help="Guest-physical start, a multiple of the granule.",
)
_size = click.option("--size", type=SIZE, help="Such as 64M or 0x1000; without --gpa: all of it.")
_node = click.option(
    "--node",
    type=click.IntRange(min=0),
    help="A NUMA node of the guest; without --gpa whole granules of it, from its end on.",
)
_granule = click.option(
    "--granule",
    type=click.Choice([granule.value for granule in Granule]),
    default=Granule.SMALL.value,
    show_default=True,
    help="Ranges are rounded inward to it.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")


@click.command()
@click.argument("pid", type=PID)
@_gpa
@_size
@_node
@_granule
@click.option(
    "--guest-agreed",
    is_flag=True,
    help="The guest has given this range up. Its contents are lost.",
)
@_json
def inflate(  # noqa: PLR0913 - an option each
    pid: int,
    *,
    gpa: int | None,
    size: int | None,
    node: int | None,
    granule: str,
    guest_agreed: bool,
    as_json: bool,
) -> None:
    """Take a range from the guest of the attached PID, and trap it.

    Example: uffdballoon inflate 4711 --gpa 0x8000000 --size 64M --guest-agreed
    """
    what = _what(gpa, size, node)
    report = client.request(
        pid, "inflate", ChangeReport, **what, granule=granule, guest_agreed=guest_agreed
    )
    _report("inflated", report, as_json=as_json)


@click.command()
@click.argument("pid", type=PID)
@_gpa
@_size
@_node
@_granule
@_json
def deflate(
    pid: int,
    *,
    gpa: int | None,
    size: int | None,
    node: int | None,
    granule: str,
    as_json: bool,
) -> None:
    """Give a range back to the guest of the attached PID."""
    report = client.request(pid, "deflate", ChangeReport, **_what(gpa, size, node), granule=granule)
    _report("deflated", report, as_json=as_json)


@click.command()
@click.argument("pid", type=PID)
@click.option("--tid", type=click.IntRange(min=1), help="This thread only; `status` lists them.")
def release(pid: int, *, tid: int | None) -> None:
    """Let a frozen vCPU of the attached PID go on.

    It gets the page that it touched. Without --tid every frozen vCPU goes on.

    Example: uffdballoon release 4711 --tid 4715
    """
    released = client.request(pid, "release", Released, tid=tid).released
    say(f"released {released} touch(es)")


def _what(gpa: int | None, size: int | None, node: int | None) -> dict[str, int | None]:
    if gpa is None and node is None:
        raise UsageError(
            "no range was given",
            why="it begins at --gpa, or is a part of --node",
            hint="give --gpa A --size S, or --node N",
        )
    if gpa is not None and size is None:
        raise UsageError(
            f"how much is meant at gpa {gpa:#x} was not said",
            why="a range has a --gpa and a --size",
            hint="give --size S, such as --size 64M",
        )
    return {"gpa": gpa, "size": size, "node": node}


def _report(done: str, report: ChangeReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for line in change_lines(done, report):
        say(line)
