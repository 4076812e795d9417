# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach and detach."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, TYPE_CHECKING, Literal

import click

from uffdballoon.cli.output import say
from uffdballoon.cli.types import (
    ALLOWED,
    BROKEN,
    DURATION_NS,
    LADDER,
    NO_MEMORY,
    NODE_BROKEN,
    NODE_SIZE,
    PID,
    SIZE,
)
from uffdballoon.core.keeper import Held, start_keeper, take_from_keeper
from uffdballoon.core.service_manager import Passed, ServiceManager, Store, trace_of
from uffdballoon.daemon import client
from uffdballoon.daemon.manager import Ending, Manager
from uffdballoon.daemon.runtime import (
    keeper_path,
    listen_at,
    refuse_if_attached,
    refuse_unless_listening_can_be,
    remove_dead_sockets,
)
from uffdballoon.errors import ExitCode, UsageError
from uffdballoon.metrics.text import event_line
from uffdballoon.model.fragmentation import HUGE_ORDER, KEEP_HUGE_PAGES, FragmentationLimit
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.ofnodes import refuse_twice
from uffdballoon.model.policy import DEFAULT_POLICY, Policy
from uffdballoon.model.reclaiming import DEFAULT_RATE_BYTES_PER_S, Reclaiming
from uffdballoon.model.records.encoding import to_json
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.session import Holding, Session, SessionOptions
from uffdballoon.vmm.qemu.suitability import ALLOWABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.core.keeper import Keeper, Kept
    from uffdballoon.model.records.events import Event

_EXIT_CODES = {
    Ending.DETACHED: ExitCode.DONE,
    Ending.SIGNAL: ExitCode.DONE,
    Ending.TARGET_GONE: ExitCode.FAILED,
    Ending.VIOLATION: ExitCode.VIOLATION,
}
_NS_PER_US = 1000
_NS_PER_S = 1_000_000_000


@click.command()
@click.argument("pid", type=PID)
@click.option("--qmp", metavar="PATH", help="Socket of a QMP monitor of this QEMU.")
@click.option(
    "--without-monitor",
    is_flag=True,
    help="Take a policy that freezes, pauses, poisons or kills, and a boot grace, without a "
    "monitor, which nothing else tells of the guest's resets; where nothing tells the vCPUs either "
    "(TCG without debug-threads=on), every thread of QEMU counts as the guest.",
)
@click.option(
    "--allow",
    "allowed",
    type=ALLOWED,
    metavar="WORD,...",
    default=frozenset(),
    help="Attach although that makes some of it not hold, which `inspect` describes: "
    f"{', '.join(ALLOWABLE)}.",
)
@click.option("--contract", type=click.Choice(["told", "cap"]), default="told", show_default=True)
@click.option("--floor", type=SIZE, help="With --contract cap: what stays in the balloon.")
@click.option(
    "--node-floor",
    "node_floors",
    type=NODE_SIZE,
    multiple=True,
    help="With --contract cap: what stays in the balloon of that NUMA node of the guest; once a "
    "node.",
)
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
    type=click.Choice(["auto", *(kind.value for kind in ObserverKind)]),
    default="auto",
    show_default=True,
    help="What tells which pages the guest's driver gives up; told needs trace or direct.",
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
    "--trust-seccomp",
    is_flag=True,
    help="When the target's seccomp filters cannot be read, attach all the same: a filter that "
    "kills then ends the target.",
)
@click.option(
    "--on-exit",
    type=click.Choice(["release", "hold"]),
    default="release",
    show_default=True,
    help="hold: when the manager is killed or signalled, a keeper holds the traps, and who touches "
    "one waits, until `attach` takes over. `detach` releases in any case.",
)
@click.option(
    "--hold-for",
    "hold_ns",
    type=DURATION_NS,
    default="30s",
    show_default=True,
    help="With --on-exit hold: after so long without a manager the keeper lets go. Under systemd "
    "the limits of the unit count instead.",
)
@click.option(
    "--on-no-memory",
    "memory_patience_ns",
    type=NO_MEMORY,
    default="wait",
    show_default=True,
    help="When the pool of huge pages is empty, a touch that needs one waits until there is one; "
    "kill: end QEMU instead, with =DURATION after it waited so long.",
)
@click.option("--events", "events_to", metavar="FILE|-", help="Write events there.")
@click.option(
    "--events-format", type=click.Choice(["json", "text"]), default="json", show_default=True
)
@click.option(
    "--stop-budget-us",
    type=click.IntRange(min=100),
    help="How long zaps may stop a thread at a time: 10000 by default for QEMU's RCU thread, for "
    "which nobody waits; 2000 for the main thread, where there is no other.",
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
@click.option(
    "--reclaim",
    type=click.Choice([mode.value for mode in Reclaiming]),
    default=Reclaiming.NOW.value,
    show_default=True,
    help="When the rest of a huge page is split, which keeps what was zapped out of it: now, or "
    "when the kernel sees to it, short of memory.",
)
@click.option(
    "--reclaim-rate",
    type=SIZE,
    default=DEFAULT_RATE_BYTES_PER_S,
    show_default="4G",
    help="Split the huge pages of at most so much memory a second.",
)
@click.option(
    "--min-order",
    type=click.IntRange(0, HUGE_ORDER),
    metavar="N",
    help="With --max-broken or --node-max-broken: blocks of 2 MiB are broken by what is given up "
    "in pieces smaller than 2^N pages, aligned.  [default: 9]",
)
@click.option(
    "--max-broken",
    type=BROKEN,
    help="Stop the guest's driver when its balloon has broken more blocks of 2 MiB, or more "
    "memory in such blocks. Needs --qmp.",
)
@click.option(
    "--node-max-broken",
    type=NODE_BROKEN,
    multiple=True,
    help="As --max-broken, of what that NUMA node of the guest has in the balloon; once a node.",
)
@click.option(
    "--keep-huge-pages",
    is_flag=True,
    help="Do not reduce guest performance: the same as --min-order 9 --max-broken 0.",
)
@click.option(
    "--sandbox/--no-sandbox",
    default=True,
    show_default=True,
    help="Give up privileges and system calls that enforcing does not need.",
)
@click.option("--fail-on-violation", is_flag=True, help="End with exit code 5 at the first one.")
def attach(  # noqa: PLR0913 - an option each
    pid: int,
    *,
    qmp: str | None,
    without_monitor: bool,
    allowed: frozenset[str],
    contract: str,
    floor: int | None,
    node_floors: tuple[tuple[int, int], ...],
    grace_ns: int | None,
    grace_bytes: int | None,
    max_windows: int | None,
    policy: Policy,
    observer: str,
    method: Literal["auto", "direct", "passed"],
    trust_seccomp: bool,
    on_exit: str,
    hold_ns: int,
    memory_patience_ns: int,
    events_to: str | None,
    events_format: str,
    stop_budget_us: int | None,
    reclaim: str,
    reclaim_rate: int,
    min_order: int | None,
    max_broken: int | None,
    node_max_broken: tuple[tuple[int, int], ...],
    keep_huge_pages: bool,
    sandbox: bool,
    fail_on_violation: bool,
) -> int:
    """Attach to the QEMU process PID and hold its guest to the balloon.

    Stays in the foreground; the other verbs talk to it. Ends, and lets the guest go on, on
    `detach`, SIGINT, SIGTERM or SIGHUP.

    Example: uffdballoon attach 4711 --qmp /run/vm/qmp --policy zero-read,kill --events -
    """
    terms = _terms(contract, floor, node_floors, grace_ns, grace_bytes)
    fragmentation = _limit(min_order, max_broken, node_max_broken, keep_huge_pages=keep_huge_pages)
    remove_dead_sockets()
    refuse_if_attached(pid)
    refuse_unless_listening_can_be(pid)
    service = ServiceManager.find()
    held = _take_held(pid, service)
    options = SessionOptions(
        pid=pid,
        qmp_path=qmp,
        without_monitor=without_monitor,
        allowed=allowed,
        terms=terms,
        policy=policy,
        max_windows=max_windows,
        uffd_method=method,
        trust_seccomp=trust_seccomp,
        stop_budget_ns=stop_budget_us * _NS_PER_US if stop_budget_us else None,
        observer=None if observer == "auto" else ObserverKind(observer),
        reclaiming=Reclaiming(reclaim),
        reclaim_rate_bytes_per_s=reclaim_rate,
        fragmentation=fragmentation,
        memory_patience_ns=memory_patience_ns,
        held=held,
        holding=_holding(pid, hold_ns, held, service) if on_exit == "hold" else None,
    )
    with (
        _event_writer(events_to, events_format) as on_event,
        Session(options, progress=say) as session,
    ):
        with Manager(
            session, on_event=on_event, fail_on_violation=fail_on_violation, sandbox=sandbox
        ) as manager:
            say(str(manager.lockdown))
            say(f"attached to {pid}; enforcing {policy}; Ctrl-C or `uffdballoon detach {pid}` ends")
            if service is not None:
                service.tell("READY=1", f"STATUS=attached to {pid}, enforcing {policy}")
            ending = manager.run()
            if service is not None:
                service.tell("STOPPING=1", f"STATUS={_describe(ending, pid)}")
        leaves = ending is Ending.SIGNAL and session.leave_to_keeper()
        if leaves:
            say(_tell_held(hold_ns, service))
        counts = session.touch_counts()
    if not leaves:
        # Not before the keeper has ended: one that nobody finds would hold on by itself.
        keeper_path(pid).unlink(missing_ok=True)
    say(
        f"{_describe(ending, pid)}; {counts.violations} violation(s), "
        f"{counts.events_dropped} event(s) dropped"
    )
    return int(_EXIT_CODES[ending])


@click.command()
@click.argument("pid", type=PID)
def detach(pid: int) -> None:
    """End the attach to PID; its guest goes on, unenforced."""
    client.detach(pid)
    say(f"detached from {pid}")


def _take_held(pid: int, service: ServiceManager | None) -> Held | None:
    """Take what the service manager, or a keeper, holds of that process."""
    passed = Passed.take().of(pid if service is not None else None)
    if passed and service is not None:
        store = Store(service, pid)
        os.close(passed["pidfd"])
        monitor = passed.get("monitor")
        return Held(store, passed["uffd"], passed["ledger"], trace_of(passed), monitor)
    return take_from_keeper(keeper_path(pid))


def _holding(pid: int, hold_ns: int, held: Held | None, service: ServiceManager | None) -> Holding:
    """Say who is to hold all; one who does already goes on."""
    if held is not None:
        return Holding(None)
    if service is not None:
        # A keeper would be a process of the service, and end with it (systemd.kill(5), KillMode=).
        if not service.is_known_to_store:
            say(
                "not known: whether the service manager holds what it is given "
                "(FileDescriptorStoreMax=; systemd 254 and later say so in FDSTORE)"
            )
        return Holding(Store(service, pid).hold)
    keeper_path(pid).unlink(missing_ok=True)  # of one that has ended
    listener = listen_at(keeper_path(pid), pid)

    def hold(kept: Kept) -> Keeper:
        with listener:
            return start_keeper(listener, kept, hold_ns)

    return Holding(hold)


def _tell_held(hold_ns: int, service: ServiceManager | None) -> str:
    if service is not None:
        return "its traps are held by the service manager, until the unit is started anew or stops"
    return f"its traps are held for {hold_ns / _NS_PER_S:g} s: attach again to go on"


def _describe(ending: Ending, pid: int) -> str:
    return {
        Ending.DETACHED: f"detached from {pid}",
        Ending.SIGNAL: f"detached from {pid} on a signal",
        Ending.TARGET_GONE: f"process {pid} ended",
        Ending.VIOLATION: f"detached from {pid} at its first violation",
    }[ending]


@contextlib.contextmanager
def _event_writer(path: str | None, form: str) -> Iterator[Callable[[Event], None]]:
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

        def write(event: Event) -> None:
            if stream is not None:
                line = to_json(event) if form == "json" else event_line(event)
                print(line, file=stream, flush=True)

        yield write


def _limit(
    min_order: int | None,
    max_broken: int | None,
    of_nodes: tuple[tuple[int, int], ...],
    *,
    keep_huge_pages: bool,
) -> FragmentationLimit | None:
    given = min_order is not None or max_broken is not None or bool(of_nodes)
    if keep_huge_pages and given:
        raise UsageError(
            "--keep-huge-pages goes without --min-order, --max-broken and --node-max-broken",
            why="it stands for --min-order 9 --max-broken 0",
            hint="give one or the other",
        )
    refuse_twice("--node-max-broken", of_nodes)
    if keep_huge_pages:
        return KEEP_HUGE_PAGES
    if not given:
        return None
    return FragmentationLimit(
        min_order=HUGE_ORDER if min_order is None else min_order,
        max_broken_blocks=0 if max_broken is None and not of_nodes else max_broken,
        node_max_broken=of_nodes,
    )


def _terms(
    contract: str,
    floor: int | None,
    node_floors: tuple[tuple[int, int], ...],
    grace_ns: int | None,
    grace_bytes: int | None,
) -> Terms:
    kind = ContractKind(contract)
    given = node_floors or (floor, grace_ns, grace_bytes) != (None, None, None)
    if kind is ContractKind.TOLD and given:
        raise UsageError(
            "a floor and a boot grace go with --contract cap",
            why="under told a page leaves the balloon by being deflated, and by nothing else",
            hint="leave them out, or add --contract cap",
        )
    if kind is ContractKind.CAP and floor is None and not node_floors:
        raise UsageError(
            "--contract cap needs a floor",
            why="it is what has to stay in the balloon",
            hint="give --floor SIZE, such as --floor 512M, or --node-floor NODE=SIZE",
        )
    refuse_twice("--node-floor", node_floors)
    return Terms(
        kind=kind,
        floor_bytes=floor or 0,
        grace_ns=grace_ns or 0,
        grace_bytes=grace_bytes or 0,
        node_floors=node_floors,
    )
