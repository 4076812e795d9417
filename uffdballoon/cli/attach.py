# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach and detach."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Literal

import click

from uffdballoon.cli.alone import (
    LEAST_EVENTS_BYTES,
    LEAST_RATE_BYTES_PER_S,
    at_least,
    refuse_alone,
)
from uffdballoon.cli.event_outputs import DEFAULT_LIMIT_BYTES, Told, event_outputs
from uffdballoon.cli.holding import held_words, holding_by, take_held
from uffdballoon.cli.monitor_choice import AUTO, NONE, MonitorChoice, choose_monitor
from uffdballoon.cli.output import say
from uffdballoon.cli.terminal import Verbosity
from uffdballoon.cli.terms import limit_of, terms_change
from uffdballoon.cli.types import (
    ALLOWED,
    BROKEN,
    DURATION_NS,
    LADDER,
    NO_MEMORY,
    NODE_BROKEN,
    NODE_SIZE,
    PID,
    QMP,
    SIZE,
)
from uffdballoon.cli.unit_status import UnitStatus
from uffdballoon.core.service_manager import ServiceManager
from uffdballoon.daemon import client
from uffdballoon.daemon.manager import Ending, Manager
from uffdballoon.daemon.runtime import (
    keeper_path,
    refuse_if_attached,
    refuse_unless_listening_can_be,
    remove_dead_sockets,
)
from uffdballoon.errors import ExitCode, UsageError
from uffdballoon.model.fragmentation import HUGE_ORDER
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import DEFAULT_POLICY, Policy
from uffdballoon.model.reclaiming import DEFAULT_RATE_BYTES_PER_S, Reclaiming
from uffdballoon.model.terms import TOLD
from uffdballoon.session import Session, SessionOptions
from uffdballoon.session.looking import refuse_at_first_sight
from uffdballoon.vmm.qemu.suitability import ALLOWABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXIT_CODES = {
    Ending.DETACHED: ExitCode.DONE,
    Ending.SIGNAL: ExitCode.DONE,
    Ending.TARGET_GONE: ExitCode.FAILED,
    Ending.VIOLATION: ExitCode.VIOLATION,
}
_NS_PER_US = 1000


@click.command()
@click.argument("pid", type=PID)
@click.option(
    "--qmp",
    type=QMP,
    metavar=QMP.name,
    help="Socket of a QMP monitor of this QEMU, or the libvirt that has it, as virsh is told. "
    "auto: a free one that its command line names, or its libvirt; what others connect to when "
    "there is need (Proxmox) is asked and left.  [default: auto]",
)
@click.option(
    "--without-monitor",
    is_flag=True,
    help="Look for none, and take a policy that freezes, pauses, poisons or kills, and a boot "
    "grace, without one: nothing else tells of the guest's resets. Where nothing tells the vCPUs "
    "either (TCG without debug-threads=on), every thread of QEMU counts as the guest.",
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
    "--limit",
    type=SIZE,
    help="With --contract cap: what the guest may have of its RAM; what that leaves is the floor.",
)
@click.option(
    "--count-reported",
    is_flag=True,
    help="With --contract cap: what free page reporting gives back is in the balloon as well, and "
    "is granted as the blocks that it was given back in.",
)
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
    help="What tells which pages the guest's driver gives up; told needs trace, monitor or direct.",
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
@click.option(
    "--events",
    "events_to",
    metavar="FILE|-|journal",
    help="Write events there. Where that cannot be they are counted as not written, and "
    "enforcement goes on.",
)
@click.option(
    "--events-limit",
    type=SIZE,
    default=DEFAULT_LIMIT_BYTES,
    callback=at_least(LEAST_EVENTS_BYTES),
    show_default="64M",
    help="With a file: when it is so long, what is in it goes to FILE.1, and it begins anew.",
)
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
    "--always-trap",
    is_flag=True,
    help="With cap: trap and tell of each touch of the balloon, far above the floor, too.",
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
    callback=at_least(LEAST_RATE_BYTES_PER_S),
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
    "--keep-guest-performance",
    is_flag=True,
    help="Do not reduce guest performance: the same as --min-order 9 --max-broken 0.",
)
@click.option(
    "--sandbox/--no-sandbox",
    default=True,
    show_default=True,
    help="Give up privileges and system calls that enforcing does not need.",
)
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    help="Say nothing of events on standard error.",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Say each event there, not just the first of a kind and how many there were.",
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
    limit: int | None,
    count_reported: bool,
    node_floors: tuple[tuple[int, int], ...],
    grace_ns: int | None,
    grace_bytes: int | None,
    max_windows: int | None,
    always_trap: bool,
    policy: Policy,
    observer: str,
    method: Literal["auto", "direct", "passed"],
    trust_seccomp: bool,
    on_exit: str,
    hold_ns: int,
    memory_patience_ns: int,
    events_to: str | None,
    events_limit: int,
    events_format: str,
    quiet: bool,
    verbose: bool,
    stop_budget_us: int | None,
    reclaim: str,
    reclaim_rate: int,
    min_order: int | None,
    max_broken: int | None,
    node_max_broken: tuple[tuple[int, int], ...],
    keep_guest_performance: bool,
    sandbox: bool,
    fail_on_violation: bool,
) -> int:
    """Hold the guest of the QEMU process PID to its balloon.

    Stays in the foreground; the other verbs talk to it. Ends, and lets the guest go on, on
    `detach`, SIGINT, SIGTERM or SIGHUP.

    Example: uffdballoon attach 4711 --qmp /run/vm/qmp --policy zero-read,kill --events -
    """
    refuse_alone(click.get_current_context().params)
    wanted = terms_change(
        contract,
        floor,
        limit,
        node_floors,
        grace_ns,
        grace_bytes,
        count_reported=count_reported or None,
    )
    terms = wanted.applied_to(TOLD)
    fragmentation = limit_of(
        min_order, max_broken, node_max_broken, keep_guest_performance=keep_guest_performance
    )
    verbosity = _verbosity(quiet=quiet, verbose=verbose)
    remove_dead_sockets()
    refuse_if_attached(pid)
    origin = refuse_at_first_sight(pid)
    refuse_unless_listening_can_be(pid)
    service = ServiceManager.find()
    held = take_held(pid, service)
    monitor = _monitor(pid, qmp, is_held=held is not None, without_monitor=without_monitor)
    options = SessionOptions(
        pid=pid,
        qmp_path=monitor.path,
        leaves_monitor=monitor.leaves,
        without_monitor=without_monitor,
        allowed=allowed,
        terms=terms,
        policy=policy,
        max_windows=max_windows,
        always_trap=always_trap,
        uffd_method=method,
        trust_seccomp=trust_seccomp,
        stop_budget_ns=stop_budget_us * _NS_PER_US if stop_budget_us else None,
        observer=None if observer == "auto" else ObserverKind(observer),
        reclaiming=Reclaiming(reclaim),
        reclaim_rate_bytes_per_s=reclaim_rate,
        fragmentation=fragmentation,
        memory_patience_ns=memory_patience_ns,
        held=held,
        holding=holding_by(pid, hold_ns, held, service) if on_exit == "hold" else None,
    )
    with (
        _kept_going(),
        event_outputs(events_to, events_format, events_limit, verbosity, origin) as told,
    ):
        if monitor.told:
            told.say(monitor.told)
        ending = _enforce(
            options,
            told,
            service,
            hold_ns=hold_ns,
            fail_on_violation=fail_on_violation,
            sandbox=sandbox,
        )
    return int(_EXIT_CODES[ending])


def _enforce(
    options: SessionOptions,
    told: Told,
    service: ServiceManager | None,
    *,
    hold_ns: int,
    fail_on_violation: bool,
    sandbox: bool,
) -> Ending:
    """Attach, serve until something ends it, and say how it ended."""
    pid = options.pid
    outputs = [*told.outputs, *([UnitStatus(service, pid)] if service is not None else [])]
    with Session(options, progress=told.say) as session:
        policy = session.options.policy  # of a manager before us, where it was changed
        with Manager(
            session, outputs=outputs, fail_on_violation=fail_on_violation, sandbox=sandbox
        ) as manager:
            told.say(str(manager.lockdown))
            told.say(
                f"attached to {pid}; enforcing {policy}; Ctrl-C or `uffdballoon detach {pid}` ends"
            )
            if service is not None:
                service.tell_attached(pid, policy, "READY=1")
            ending = manager.run()
            if service is not None:
                service.tell("STOPPING=1", f"STATUS={_describe(ending, pid)}")
        leaves = ending is Ending.SIGNAL and session.leave_to_keeper()
        if leaves:
            told.say(held_words(hold_ns, service))
        counts = session.touch_counts()
    if not leaves:
        # Not before the keeper has ended: one that nobody finds would hold on by itself.
        keeper_path(pid).unlink(missing_ok=True)
    told.say(
        f"{_describe(ending, pid)}; {counts.violations} violation(s), "
        f"{counts.events_dropped} event(s) dropped"
    )
    return ending


@click.command()
@click.argument("pid", type=PID)
def detach(pid: int) -> None:
    """End the attach to PID; its guest goes on, unenforced."""
    client.detach(pid)
    say(f"detached from {pid}")


def _monitor(pid: int, qmp: str | None, *, is_held: bool, without_monitor: bool) -> MonitorChoice:
    """Choose the monitor; who goes on with what was held goes on with the monitor of then."""
    return choose_monitor(pid, qmp or (NONE if is_held or without_monitor else AUTO))


def _verbosity(*, quiet: bool, verbose: bool) -> Verbosity:
    if quiet and verbose:
        raise UsageError(
            "--quiet and --verbose do not go together",
            why="one asks for no events on standard error, the other for all",
            hint="give one of them, or none",
        )
    if quiet:
        return Verbosity.QUIET
    return Verbosity.ALL if verbose else Verbosity.USUAL


@contextlib.contextmanager
def _kept_going() -> Iterator[None]:
    """Ignore what would stop us: a manager that is stopped leaves its guest in a trap."""
    stops = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe(ending: Ending, pid: int) -> str:
    return {
        Ending.DETACHED: f"detached from {pid}",
        Ending.SIGNAL: f"detached from {pid} on a signal",
        Ending.TARGET_GONE: f"process {pid} ended",
        Ending.VIOLATION: f"detached from {pid} at its first violation",
    }[ending]
