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
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from uffdballoon.cli.map import ask_for_map
from uffdballoon.cli.output import say
from uffdballoon.cli.rates import Rates
from uffdballoon.cli.text.screen import View, screen
from uffdballoon.cli.types import DURATION_NS, PID
from uffdballoon.daemon import client
from uffdballoon.errors import ControlError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDS = set(b"qQ\x03\x04")
_SHORTEST_S = 0.1


@click.command()
@click.argument("pid", type=PID)
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
def top(pid: int, *, once: bool, interval_ns: int, recent_ns: int) -> None:
    """Watch the guest of the attached PID: its counters and its map.

    It ends by q or Ctrl-C, and when the manager does.
    """
    console = Console()
    if once:
        console.print(screen(_look(pid, recent_ns), console, fill=False))
        return
    if not console.is_terminal or not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to draw on",
            why="standard input or output is something else",
            hint="uffdballoon top PID --once, or map and status with --json",
        )
    ended = _watch(pid, console, max(_SHORTEST_S, interval_ns / 1e9), recent_ns)
    if ended is not None:
        say(f"no longer attached: {ended.what}")


def _look(pid: int, recent_ns: int, before: View | None = None, seconds: float = 1.0) -> View:
    status = client.status(pid)
    rates = None if before is None else Rates.between(before.status, status, seconds)
    return View(status, ask_for_map(pid, recent_ns), rates)


def _watch(pid: int, console: Console, interval_s: float, recent_ns: int) -> ControlError | None:
    """Draw until a person ends it, or return how the manager went."""
    view, seen_at = _look(pid, recent_ns), time.monotonic()
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys_at_once(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(screen(view, console, fill=True), refresh=True)
            if _is_ended(interval_s):
                return None
            now = time.monotonic()
            try:
                view = _look(pid, recent_ns, view, now - seen_at)
            except ControlError as ended:
                return ended
            seen_at = now
    return None


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
