# SPDX-License-Identifier: GPL-2.0-or-later
"""Inflate and deflate by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

import click

from uffdballoon.cli.output import print_json, say
from uffdballoon.cli.ranges import STDIN, parse_range, read_ranges, refuse_unaligned, requests_of
from uffdballoon.cli.text.changes import deflate_lines, inflate_lines, preview_lines
from uffdballoon.cli.types import ADDRESS, NODE_PART, PID, SIZE, Parsed
from uffdballoon.daemon import client
from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.ofnodes import refuse_twice
from uffdballoon.model.records.changes import ChangeReport, InflatePreview, Released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")

_RANGE = Parsed("GPA+SIZE", parse_range)


class _Given(TypedDict):
    """The options that say which memory is meant, as click gives them."""

    gpa: int | None
    size: int | None
    ranges: tuple[GpaRange, ...]
    from_file: str | None
    nodes: tuple[tuple[int, int | None], ...]
    granule: str


def _what(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which memory is meant."""
    options = (
        click.option(
            "--gpa", type=ADDRESS, help="Guest-physical start, a multiple of the granule."
        ),
        click.option(
            "--size", type=SIZE, help="Such as 64M, 64Mi or 0x1000; without --gpa: all of it."
        ),
        click.option(
            "--range",
            "ranges",
            type=_RANGE,
            multiple=True,
            help="A range, such as 0x8000000+64M; as often as you like.",
        ),
        click.option(
            "--from-file",
            metavar=f"FILE|{STDIN}",
            help="A line of GPA SIZE for each range; comments begin with #.",
        ),
        click.option(
            "--node",
            "nodes",
            type=NODE_PART,
            multiple=True,
            help="A NUMA node of the guest; without a range whole granules of it, from its end on. "
            "Several in one go, each with a size: --node 0=64M --node 1=128M.",
        ),
        click.option(
            "--granule",
            type=click.Choice([granule.value for granule in Granule]),
            default=Granule.SMALL.value,
            show_default=True,
            help="Ranges are rounded inward to it.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("pid", type=PID)
@_what
@click.option(
    "--guest-agreed",
    is_flag=True,
    help="The guest has given this memory up. Its contents are lost.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be taken, and change nothing.")
def inflate(
    pid: int, *, guest_agreed: bool, dry_run: bool, as_json: bool, **given: Unpack[_Given]
) -> None:
    """Take ranges from the guest of the attached PID, and trap them.

    Of more than 1000 ranges each 1000 are taken or refused by themselves.

    Example: uffdballoon inflate 4711 --gpa 0x8000000 --size 64M --guest-agreed
    """
    what = _Memory.of(**given)
    if dry_run:
        told = what.asking(pid, "inflate", InflatePreview, dry_run=True)
        preview = InflatePreview.total(list(told))
        _print(preview, preview_lines(preview), as_json=as_json)
        return
    asking = what.asking(pid, "inflate", ChangeReport, guest_agreed=guest_agreed)
    _change(asking, what, inflate_lines, as_json=as_json)


@click.command()
@click.argument("pid", type=PID)
@_what
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="All that is in the balloon, what the guest's own driver gave up as well.",
)
def deflate(pid: int, *, everything: bool, as_json: bool, **given: Unpack[_Given]) -> None:
    """Give ranges back to the guest of the attached PID."""
    if everything:
        _refuse_beside_all(**given)
        report = client.request(pid, "deflate", ChangeReport, all=True)
        _print(report, deflate_lines(report), as_json=as_json)
        return
    what = _Memory.of(**given)
    _change(what.asking(pid, "deflate", ChangeReport), what, deflate_lines, as_json=as_json)


@click.command()
@click.argument("pid", type=PID)
@click.option("--tid", type=click.IntRange(min=1), help="This thread only; `status` lists them.")
def release(pid: int, *, tid: int | None) -> None:
    """Let a frozen vCPU of the attached PID go on.

    It gets the page that it touched. Without --tid every frozen vCPU goes on.

    Example: uffdballoon release 4711 --tid 4715
    """
    released = client.request(pid, "release", Released, tid=tid).released
    say(f"released {released} touch(es)" if released else "no touch is frozen: nothing to release")


@dataclass(frozen=True, slots=True)
class _Memory:
    """Which memory is meant; without ``ranges``, so much of each of ``nodes``, None for all."""

    ranges: tuple[GpaRange, ...]
    nodes: tuple[tuple[int, int | None], ...]
    granule: Granule

    @classmethod
    def of(cls, **given: Unpack[_Given]) -> _Memory:
        """Read the options; raise UsageError where they do not say what is meant."""
        gpa, size, nodes = given["gpa"], given["size"], given["nodes"]
        unit = Granule(given["granule"])
        spans = [*given["ranges"]]
        if gpa is not None:
            spans.insert(0, _range_at(gpa, size))
        refuse_unaligned(spans, unit)
        if given["from_file"] is not None:
            spans += read_ranges(given["from_file"], unit)
        refuse_twice("--node", nodes)
        if not spans and not nodes:
            raise UsageError(
                "no range was given",
                why="it begins at --gpa, or is a part of --node",
                hint="give --gpa A --size S, --range A+S, --from-file FILE, or --node N",
            )
        if spans and gpa is None and size is not None:
            raise UsageError(
                "a --size without its --gpa",
                why="ranges have a size of their own",
                hint="leave --size out, or give --gpa with it",
            )
        if not spans and size is not None and len(nodes) == 1 and nodes[0][1] is None:
            return cls((), ((nodes[0][0], size),), unit)
        _refuse_mixed(nodes, spans, size)
        return cls(tuple(spans), nodes, unit)

    def asking(self, pid: int, verb: str, shape: type[T], **more: object) -> Iterator[T]:
        """Ask for it, in as many requests as it takes; yield what came of each."""
        common = {"granule": self.granule.value, **more}
        if not self.ranges:
            yield client.request(pid, verb, shape, nodes=[list(n) for n in self.nodes], **common)
            return
        common["node"] = self.nodes[0][0] if self.nodes else None
        for part in requests_of(self.ranges):
            rows = [[span.start, span.size_bytes] for span in part]
            yield client.request(pid, verb, shape, ranges=rows, **common)


def _refuse_mixed(
    nodes: Sequence[tuple[int, int | None]], spans: Sequence[GpaRange], size: int | None
) -> None:
    if spans and (len(nodes) > 1 or any(of_node is not None for _, of_node in nodes)):
        raise UsageError(
            "a range and parts of nodes do not go together",
            why="a range has a size of its own, and lies on one node",
            hint="give --node N with a range, or --node N=SIZE, as often as you like, without one",
        )
    if not spans and size is not None:
        raise UsageError(
            "--size does not say of which node",
            why="there are several, or the node has a size already",
            hint="give each its own: --node 0=64M --node 1=128M",
        )


def _range_at(gpa: int, size: int | None) -> GpaRange:
    if size is None:
        raise UsageError(
            f"how much is meant at gpa {gpa:#x} was not said",
            why="a range has a --gpa and a --size",
            hint="give --size S, such as --size 64M",
        )
    return GpaRange.of(gpa, size)


def _refuse_beside_all(**given: Unpack[_Given]) -> None:
    ignored = {None, (), Granule.SMALL.value}
    if any(value not in ignored for value in given.values()):
        raise UsageError(
            "--all and a range do not go together",
            why="all of the balloon is one thing, a part of it is another",
            hint="give --all alone",
        )


def _change(
    asking: Iterator[ChangeReport],
    what: _Memory,
    lines: Callable[[ChangeReport], Iterable[str]],
    *,
    as_json: bool,
) -> None:
    """Have it done, and say how far it is where it takes several requests."""
    reports: list[ChangeReport] = []
    try:
        for report in asking:
            reports.append(report)
            if len(report.ranges) < len(what.ranges):
                done = sum(len(each.ranges) for each in reports)
                say(f"{done} of {len(what.ranges)} ranges are done")
    except BaseException:
        if reports:
            say("of what was asked for this was done, and no more:")
            for line in lines(ChangeReport.total(reports)):
                say(line)
        raise
    total = ChangeReport.total(reports)
    _print(total, lines(total), as_json=as_json)


def _print(report: object, lines: Iterable[str], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for line in lines:
        say(line)
