# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach and detach."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import IO, TYPE_CHECKING, Any, Literal

import click

from uffdballoon.cli.output import say
from uffdballoon.cli.types import DURATION_NS, LADDER, PID, SIZE
from uffdballoon.contract.policy import DEFAULT_POLICY, Policy
from uffdballoon.daemon import client
from uffdballoon.daemon.control import refuse_if_attached
from uffdballoon.daemon.manager import Ending, Manager
from uffdballoon.errors import ExitCode, UnsupportedError, UsageError
from uffdballoon.metrics.text import event_line
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EXIT_CODES = {
    Ending.DETACHED: ExitCode.DONE,
    Ending.SIGNAL: ExitCode.DONE,
    Ending.TARGET_GONE: ExitCode.FAILED,
    Ending.VIOLATION: ExitCode.VIOLATION,
}
_NS_PER_US = 1000


@click.command()
@click.argument("pid", type=PID)
@click.option("--qmp", metavar="PATH", help="Socket of a QMP monitor of this QEMU.")
@click.option("--contract", type=click.Choice(["told", "cap"]), default="told", show_default=True)
@click.option("--floor", type=SIZE, help="With --contract cap: what stays in the balloon.")
@click.option(
    "--policy",
    type=LADDER,
    default=DEFAULT_POLICY,
    show_default=True,
    help="What is done about violations, gentlest first, such as zero-read,throttle=1000/s,pause. "
    "Rungs: observe, zero-read, throttle=RATE[:BURST], freeze[=DURATION], pause, poison, kill.",
)
@click.option(
    "--observer",
    type=click.Choice(["auto", "trace", "event", "scan", "direct"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--uffd",
    "method",
    type=click.Choice(["auto", "direct", "passed"]),
    default="auto",
    show_default=True,
    help="How to get the target's userfaultfd.",
)
@click.option(
    "--on-exit", type=click.Choice(["release", "hold"]), default="release", show_default=True
)
@click.option("--events", "events_to", metavar="FILE|-", help="Write events there.")
@click.option(
    "--events-format", type=click.Choice(["json", "text"]), default="json", show_default=True
)
@click.option(
    "--stop-budget-us",
    type=click.IntRange(min=100),
    default=2000,
    show_default=True,
    help="How long zaps may stop the target's main thread at a time.",
)
@click.option(
    "--boot-grace",
    "grace_ns",
    type=DURATION_NS,
    help="With cap: for so long after a reset the guest may go below the floor.",
)
@click.option(
    "--boot-grace-bytes",
    "grace_bytes",
    type=SIZE,
    help="With cap: it may touch so much meanwhile.",
)
@click.option(
    "--max-windows",
    type=click.IntRange(min=1),
    help="Windows to trap in at most; by default half of the mappings that are left to QEMU.",
)
@click.option("--fail-on-violation", is_flag=True, help="End with exit code 5 at the first one.")
def attach(  # noqa: PLR0913 - an option each
    pid: int,
    *,
    qmp: str | None,
    contract: str,
    floor: int | None,
    grace_ns: int | None,
    grace_bytes: int | None,
    max_windows: int | None,
    policy: Policy,
    observer: str,
    method: Literal["auto", "direct", "passed"],
    on_exit: str,
    events_to: str | None,
    events_format: str,
    stop_budget_us: int,
    fail_on_violation: bool,
) -> int:
    """Attach to the QEMU process PID and hold its guest to the balloon.

    Stays in the foreground; the other verbs talk to it. Ends, and lets the guest go on, on
    `detach`, SIGINT, SIGTERM or SIGHUP.

    Example: uffdballoon attach 4711 --qmp /run/vm/qmp --policy zero-read,kill --events -
    """
    _refuse_what_is_to_come(observer, on_exit)
    terms = _terms(contract, floor, grace_ns, grace_bytes)
    refuse_if_attached(pid)
    options = SessionOptions(
        pid=pid,
        qmp_path=qmp,
        terms=terms,
        policy=policy,
        max_windows=max_windows,
        uffd_method=method,
        stop_budget_ns=stop_budget_us * _NS_PER_US,
    )
    with (
        _event_writer(events_to, events_format) as on_event,
        Session(options, progress=say) as session,
    ):
        with Manager(session, on_event=on_event, fail_on_violation=fail_on_violation) as manager:
            say(f"attached to {pid}; enforcing {policy}; Ctrl-C or `uffdballoon detach {pid}` ends")
            ending = manager.run()
        summary = session.status()
    say(
        f"{_describe(ending, pid)}; {summary['touches']['violations']} violation(s), "
        f"{summary['events_dropped']} event(s) dropped"
    )
    return int(_EXIT_CODES[ending])


@click.command()
@click.argument("pid", type=PID)
def detach(pid: int) -> None:
    """End the attach to PID; its guest goes on, unenforced."""
    client.detach(pid)
    say(f"detached from {pid}")


def _describe(ending: Ending, pid: int) -> str:
    return {
        Ending.DETACHED: f"detached from {pid}",
        Ending.SIGNAL: f"detached from {pid} on a signal",
        Ending.TARGET_GONE: f"process {pid} ended",
        Ending.VIOLATION: f"detached from {pid} at its first violation",
    }[ending]


@contextlib.contextmanager
def _event_writer(path: str | None, form: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what writes one event, line by line, so that `tail -f` shows it at once."""
    with contextlib.ExitStack() as files:
        stream: IO[str] | None = None
        if path == "-":
            stream = sys.stdout
        elif path is not None:
            try:
                stream = files.enter_context(open(path, "a", encoding="utf-8"))  # noqa: PTH123
            except OSError as error:
                raise UsageError(
                    f"cannot write events to {path}",
                    why=error.strerror or "",
                    hint="give a file that can be written, or -",
                ) from error

        def write(event: dict[str, Any]) -> None:
            if stream is not None:
                line = json.dumps(event) if form == "json" else event_line(event)
                print(line, file=stream, flush=True)

        yield write


def _terms(
    contract: str, floor: int | None, grace_ns: int | None, grace_bytes: int | None
) -> Terms:
    kind = ContractKind(contract)
    if kind is ContractKind.TOLD and (floor, grace_ns, grace_bytes) != (None, None, None):
        raise UsageError(
            "a floor and a boot grace go with --contract cap",
            why="under told a page leaves the balloon by being deflated, and by nothing else",
            hint="leave them out, or add --contract cap",
        )
    if kind is ContractKind.CAP and floor is None:
        raise UsageError(
            "--contract cap needs a floor",
            why="it is what has to stay in the balloon",
            hint="give --floor SIZE, such as --floor 512M",
        )
    return Terms(
        kind=kind, floor_bytes=floor or 0, grace_ns=grace_ns or 0, grace_bytes=grace_bytes or 0
    )


def _refuse_what_is_to_come(observer: str, on_exit: str) -> None:
    """Refuse what the design has and this version has not, rather than pretend."""
    for given, option in (
        (observer not in ("auto", "direct"), f"--observer {observer}"),
        (on_exit == "hold", "--on-exit hold"),
    ):
        if given:
            raise UnsupportedError(
                f"{option} is not there yet",
                why="this version enforces what `uffdballoon inflate` took",
                hint="leave it out",
            )
