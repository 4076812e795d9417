# SPDX-License-Identifier: GPL-2.0-or-later
"""Show touches that were not ordinary, and what else happened."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from uffdballoon.cli.text.events import event_line
from uffdballoon.cli.types import PID, Parsed
from uffdballoon.daemon import client
from uffdballoon.model.moments import parse_moment
from uffdballoon.model.records.encoding import to_json
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from uffdballoon.model.records.events import Event

_MOMENT = Parsed("TIME", lambda text: parse_moment(text, time.time_ns()))


@click.command()
@click.argument("pid", type=PID)
@click.option("--follow", is_flag=True, help="Then go on with others as they come.")
@click.option(
    "-n", "last", type=click.IntRange(min=0), metavar="N", help="Of those past the last N only."
)
@click.option(
    "--since",
    "since_ns",
    type=_MOMENT,
    help="Not before that: 2026-01-31T12:00:00Z, without a zone of this host's; or 10m ago.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.value for kind in EventKind]),
    metavar="KIND",
    multiple=True,
    help="Of this kind, such as violation; as often as you like.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def events(
    pid: int,
    *,
    follow: bool,
    last: int | None,
    since_ns: int | None,
    kinds: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show the last 1000 events of the attached PID, or some of them.

    Example: uffdballoon events 4711 -n 20 --since 10m --kind violation --follow
    """
    wanted = Wanted(since_ns or 0, frozenset(map(EventKind, kinds)))
    told = client.follow(pid) if follow else iter([client.recent_events(pid)])
    for event in wanted.of(told, last):
        click.echo(to_json(event) if as_json else event_line(event))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are shown: not before ``since_ns``, of ``kinds``, or of all without any."""

    since_ns: int
    kinds: frozenset[EventKind]

    def of(self, told: Iterator[list[Event]], last: int | None) -> Iterator[Event]:
        """Yield what is wanted; of the first list, which is the past, the ``last`` ones only."""
        past = list(self._among(next(told, [])))
        yield from past if last is None else past[len(past) - min(last, len(past)) :]
        for news in told:
            yield from self._among(news)

    def _among(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if event.time_ns >= self.since_ns and (not self.kinds or event.kind in self.kinds):
                yield event
