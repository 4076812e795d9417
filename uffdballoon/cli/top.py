# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch an attached target."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Protocol

import click
from rich.console import Console
from rich.live import Live

from uffdballoon.cli.map import ask_for_map
from uffdballoon.cli.output import say
from uffdballoon.cli.rates import Rates
from uffdballoon.cli.text.overview import Guest, overview
from uffdballoon.cli.text.screen import View, screen
from uffdballoon.cli.types import DURATION_NS, PID
from uffdballoon.daemon import client
from uffdballoon.daemon.runtime import attached_pids
from uffdballoon.errors import ControlError, UsageError
from uffdballoon.host.pressure import memory_pressure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from uffdballoon.model.records.status import Status

_ENDS = set(b"qQ\x03\x04")
_SHORTEST_S = 0.1


@click.command()
@click.argument("pid", type=PID, required=False)
@click.option("--once", is_flag=True, help="Show it once, on what need not be a terminal.")
@click.option(
    "--interval",
    "interval_ns",
    type=DURATION_NS,
    default="1s",
    show_default=True,
    help="Time between two looks.",
)
@click.option(
    "--recent",
    "recent_ns",
    type=DURATION_NS,
    default="10s",
    show_default=True,
    help="How long a block counts as touched.",
)
def top(pid: int | None, *, once: bool, interval_ns: int, recent_ns: int) -> None:
    """Watch the guest of the attached PID, or all that are attached.

    Shows the counters and the map of one guest; of all a line each. It ends by q or Ctrl-C, and
    with PID when the manager does.
    """
    console = Console()
    screens = _screens_of_all(console) if pid is None else _screens_of(pid, console, recent_ns)
    if once:
        console.print(screens(fill=False))
        return
    if not console.is_terminal or not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to draw on",
            why="standard input or output is something else",
            hint="uffdballoon top PID --once, or map and status with --json",
        )
    ended = _watch(screens, console, max(_SHORTEST_S, interval_ns / 1e9))
    if ended is not None:
        say(f"no longer attached: {ended.what}")


class _Screens(Protocol):
    """Looks anew, and draws what it sees; raises ControlError when there is nothing any more."""

    def __call__(self, *, fill: bool) -> RenderableType: ...


def _screens_of(pid: int, console: Console, recent_ns: int) -> _Screens:
    last = _Last()

    def look(*, fill: bool) -> RenderableType:
        status = client.status(pid)
        view = View(
            status, ask_for_map(pid, recent_ns), last.rates_until(status), memory_pressure()
        )
        return screen(view, console, fill=fill)

    return look


def _screens_of_all(console: Console) -> _Screens:
    lasts: dict[int, _Last] = {}

    def look(*, fill: bool) -> RenderableType:
        guests = {}
        for pid in attached_pids():
            with contextlib.suppress(ControlError):  # it has just ended, or does not answer
                status = client.status(pid)
                last = lasts.get(pid) or _Last()
                guests[pid] = Guest(status, last.rates_until(status))
                lasts[pid] = last
        for pid in lasts.keys() - guests.keys():
            del lasts[pid]
        return overview(guests, memory_pressure(), console, fill=fill)

    return look


class _Last:
    """What a guest was like when last looked at."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._seen_s = 0.0

    def rates_until(self, status: Status) -> Rates | None:
        """Return what happened in a second since the last time, None the first time."""
        now_s, before = time.monotonic(), self._status
        seconds = now_s - self._seen_s
        self._status, self._seen_s = status, now_s
        if before is None or before.manager != status.manager:  # counts begin anew with each
            return None
        return Rates.between(before, status, seconds)


def _watch(screens: _Screens, console: Console, interval_s: float) -> ControlError | None:
    """Draw until a person ends it, or return how the manager went."""
    drawn = screens(fill=True)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys_at_once(),
        _drawing_on(console) as draw,
    ):
        while True:
            draw(drawn)
            if _is_ended(interval_s):
                return None
            try:
                drawn = screens(fill=True)
            except ControlError as ended:
                return ended
    return None


@contextlib.contextmanager
def _drawing_on(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """Draw in place; on a terminal without a cursor to move, one screen after the other."""
    if console.is_dumb_terminal:
        yield console.print
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda drawn: live.update(drawn, refresh=True)


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Have keys as they are pressed, and not shown."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _is_ended(wait_s: float) -> bool:
    """Wait for the next look; True when a person has enough."""
    until = time.monotonic() + wait_s
    while (left_s := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or _ENDS & set(keys):
                return True
    return False
