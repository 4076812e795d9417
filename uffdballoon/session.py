# SPDX-License-Identifier: GPL-2.0-or-later
"""One attached target, from attach to detach. A reader starts here.

The only place that wires the parts together: the target is pinned, its RAM is
found, a userfaultfd of it is obtained, and an enforcer holds the guest to what
it gave up. Leaving the context lets it all go, and the guest goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from msgspec import UNSET

from uffdballoon.balloon.blocks import look_at_blocks
from uffdballoon.balloon.enforcer import Enforcer
from uffdballoon.balloon.follower import Follower
from uffdballoon.balloon.fragmentation import FragmentationGuard
from uffdballoon.balloon.mappings import most_huge_mappings, window_budget
from uffdballoon.balloon.nodes import GuestNodes, refuse_unknown_nodes
from uffdballoon.balloon.reclaimer import Reclaimer
from uffdballoon.balloon.reporting import answers_of, latency_of, observed_of, touches_of
from uffdballoon.balloon.survey import Survey
from uffdballoon.core.fault_loop import LoopOptions, Resolution
from uffdballoon.core.keeper import Kept
from uffdballoon.errors import (
    RangeError,
    TargetBusyError,
    TargetGoneError,
    UffdballoonError,
    UnsupportedError,
    UsageError,
    WindowBudgetError,
)
from uffdballoon.host.probes import max_map_count
from uffdballoon.host.procfs import read_mappings
from uffdballoon.host.uffd import Feature, Userfaultfd, query_features
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange, HvaRange
from uffdballoon.model.blockmap import BlockMap, Tally
from uffdballoon.model.granule import Granule, round_inward
from uffdballoon.model.job import Turn, run_job
from uffdballoon.model.ladder import RungKind
from uffdballoon.model.notice import notice
from uffdballoon.model.policy import DEFAULT_POLICY, Policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.reclaiming import DEFAULT_RATE_BYTES_PER_S, Reclaiming
from uffdballoon.model.recording import Recording
from uffdballoon.model.records.balloon import (
    BalloonAccount,
    BalloonProgress,
    DriverProgress,
    ProgressState,
    Verification,
)
from uffdballoon.model.records.changes import ChangeReport, StopTimes
from uffdballoon.model.records.counters import Stops
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.records.spans import Span
from uffdballoon.model.records.status import ContractStatus, Held, Status, TargetState
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import TOLD, Terms
from uffdballoon.model.touch import Action
from uffdballoon.observe.choice import Circumstances, choose
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import Choice, obtain_userfaultfd
from uffdballoon.target.process import Target
from uffdballoon.target.readiness import refuse_unless_ready
from uffdballoon.target.seccomp import ZAPS, Permits, look_at_filters
from uffdballoon.vmm.qemu.discovery import discover
from uffdballoon.vmm.qemu.machine import RECONNECT_S, Machine
from uffdballoon.vmm.qemu.pausing import stop_vm
from uffdballoon.vmm.qemu.suitability import gather, judge, refuse_unsuitable
from uffdballoon.vmm.qemu.threads import find_rcu_thread
from uffdballoon.vmm.qemu.vcpus import find_vcpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from uffdballoon.balloon.survey import Surveyed
    from uffdballoon.core.fault_loop import LoopStats, TouchRecord
    from uffdballoon.core.keeper import Held as KeptHold
    from uffdballoon.core.keeper import Keeping
    from uffdballoon.model.fragmentation import FragmentationLimit
    from uffdballoon.model.job import Job
    from uffdballoon.model.observing import ObserverKind
    from uffdballoon.model.ram import Layout
    from uffdballoon.model.records.events import Event, Notice
    from uffdballoon.model.records.statistics import Statistics
    from uffdballoon.model.records.status import UffdMethod
    from uffdballoon.observe.observers import Observer
    from uffdballoon.vmm.qemu.facts import MonitorFacts
    from uffdballoon.vmm.qemu.suitability import Finding

T = TypeVar("T")

_DEFLATED_BYTES = 256 << 20  # at once
_RESET_AGAIN_S = 0.1
_PATIENCE_S = 30.0
_LOOK_S = 0.02
_CALM_LOOKS = 2  # in a row: what was about to be told when we looked first


class _Placed(NamedTuple):
    """A range of whole granules, as the guest and as the target see it, and what was left out."""

    gpa: GpaRange
    hva: HvaRange
    left_out: tuple[GpaRange, ...]


class Upkeep(NamedTuple):
    """Event lines, and seconds until the next upkeep is due; None: when something happens."""

    notices: list[Notice]
    due_s: float | None


@dataclass(frozen=True, slots=True)
class Holding:
    """That all is to be held when we end: by whom, or None for who holds it already."""

    hold: Callable[[Kept], Keeping] | None


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What to attach to, and how.

    ``held`` is what a keeper handed over: the session goes on with it. A touch that waited
    ``memory_patience_ns`` for a huge page of an empty pool has the target killed; 0: it waits on.
    Windows cut huge pages into ``max_huge_mappings`` mappings at most, by default a share of
    what the target may have.
    With ``trust_seccomp`` filters of the target that cannot be read are taken to harm nobody.
    ``without_monitor`` is the operator's word that what can hurt shall go without a monitor;
    ``allowed`` are the names of findings that shall not refuse the attach.
    """

    pid: int
    qmp_path: str | None = None
    terms: Terms = TOLD
    policy: Policy = DEFAULT_POLICY
    max_windows: int | None = None
    max_huge_mappings: int | None = None
    follow_cpu: bool = True
    uffd_method: Choice = "auto"
    trust_seccomp: bool = False
    stop_budget_ns: int | None = None
    observer: ObserverKind | None = None
    reclaiming: Reclaiming = Reclaiming.NOW
    reclaim_rate_bytes_per_s: int = DEFAULT_RATE_BYTES_PER_S
    fragmentation: FragmentationLimit | None = None
    memory_patience_ns: int = 0
    without_monitor: bool = False
    allowed: frozenset[str] = frozenset()
    held: KeptHold | None = None
    holding: Holding | None = None


class Looked(NamedTuple):
    """What can be said of a target without attaching to it."""

    layout: Layout
    monitor: MonitorFacts | None
    unsuitable: list[Finding]


def look_at(target: Target, qmp_path: str | None) -> Looked:
    """Find a target's RAM, with its monitor where a path is given; change nothing."""
    with contextlib.closing(Machine.connect(qmp_path, pid=target.pid, needed=True)) as machine:
        facts = machine.facts()
        layout = discover(target.pid, target.cmdline, facts)
        unsuitable = judge(gather(target, layout.blocks, machine.monitor))
    return Looked(layout, facts, unsuitable)


def _refuse_what_cannot_be(options: SessionOptions) -> None:
    if options.policy.has(RungKind.PAUSE) and options.qmp_path is None:
        raise UsageError(
            "the rung pause needs the monitor",
            why="QEMU is stopped by QMP, and no socket of it was given",
            hint="give --qmp PATH, or another rung",
        )
    if options.fragmentation is not None and options.qmp_path is None:
        raise UsageError(
            "a limit of broken blocks needs the monitor",
            why="an inflate is stopped by setting the balloon's target, and no socket was given",
            hint="give --qmp PATH, or leave the limit out",
        )
    if options.policy.has(RungKind.POISON) and not query_features() & Feature.POISON:
        raise UnsupportedError(
            "the rung poison cannot be performed",
            why="this kernel has no UFFDIO_POISON (Linux 6.6)",
            hint="use kill, or another rung",
        )


def _borrow_a_thread(target: Target, progress: Callable[[str], None]) -> Injector:
    """Take the RCU thread to run calls in; say so where there is only the main thread."""
    found = find_rcu_thread(target)
    if found.thread is None:
        progress(f"its main thread is stopped for zaps, a little at a time: {found.why}")
    return Injector(target, found.thread)


def _needs_monitor(options: SessionOptions) -> bool:
    if options.policy.has(RungKind.PAUSE) or options.fragmentation is not None:
        return True
    # A QEMU that waits for a touch does not answer whoever takes over.
    asked = options.qmp_path is not None and options.held is None
    return asked and not options.without_monitor and bool(_blind_harm(options))


def _blind_harm(options: SessionOptions) -> str:
    """Name what may not be done by who does not see the guest's resets; empty: nothing."""
    if options.policy.harms:
        return f"the policy {options.policy}"
    if options.terms.grace_ns or options.terms.grace_bytes:
        return "a boot grace"
    return ""


def _refuse_blind_harm(
    options: SessionOptions, *, sees_resets: bool, vcpus: Mapping[int, int]
) -> None:
    """Refuse to hurt a guest for what it did not do; raise UsageError.

    A reset that nobody sees makes what the firmware touches a violation. Where nobody can tell
    the vCPUs, a migration that reads the guest's memory would be taken for the guest.
    """
    if options.without_monitor:
        return
    harm, why = _blind_harm(options), ""
    if harm and not sees_resets:
        why = "a reset of the guest, which empties its balloon, is not seen without QEMU's monitor"
    elif options.policy.holds and not vcpus and not sees_resets:
        harm = f"the policy {options.policy}"
        why = "nothing tells which threads are vCPUs: a migration would be held as the guest is"
    if why:
        raise UsageError(
            f"{harm} needs the monitor",
            why=why,
            hint="give --qmp PATH, or take the risk with --without-monitor",
            pid=options.pid,
        )


def _refuse_without_word(what: object, *, guest_agreed: bool) -> None:
    if not guest_agreed:
        raise UsageError(
            f"{what} was not taken",
            why="what is in it is lost to the guest, and nobody said that the guest agreed",
            hint="when the guest has given this range up, say so with --guest-agreed",
        )


class Session:
    """An attached target; a context manager that detaches.

    Raises the named errors of what it wires. Must be used by one thread.
    """

    def __init__(
        self, options: SessionOptions, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self.options = options
        self._resets = 0
        self._reset_at_ns: int | None = None  # of a reset that is still to be followed
        self._inflated_bytes = 0
        self._deflated_bytes = 0
        self._stops_ns: list[int] = []
        self.uffd_method: UffdMethod = "kept"
        self._keeper: Keeping | None = None
        self._leaves = False
        with contextlib.ExitStack() as undo:
            self.target = undo.enter_context(Target.open(options.pid))
            undo.enter_context(self.target.naming_its_end())
            progress(f"process {options.pid}: {self.target.exe}")
            if options.held is None:
                refuse_unless_ready(options.pid)
            self.target.refuse_if_busy()
            _refuse_what_cannot_be(options)
            facts = self._know_the_guest(undo, progress)
            self._judge_the_guest(progress)
            known = query_features()
            self._observer = self._choose_observer(known, progress)
            undo.callback(self._observer.close)
            self._injector = undo.enter_context(_borrow_a_thread(self.target, progress))
            uffd = undo.enter_context(self._obtain(progress))
            memory = self._ledger_memory(undo)
            self._enforcer = Enforcer(
                self._injector,
                self.layout.blocks,
                uffd,
                known=known,
                options=LoopOptions(
                    terms=options.terms,
                    rungs=options.policy.rungs,
                    window_budget=self._window_budget(),
                    huge_mappings=self._most_huge_mappings(),
                    follow_cpu=options.follow_cpu,
                    tell_begin=options.fragmentation is not None,
                    memory_patience_ns=options.memory_patience_ns,
                ),
                observer=self._observer,
                vcpus=sorted(self._vcpus),
                stop_budget_ns=options.stop_budget_ns,
                memory=memory,
                resumed=options.held is not None,
                missed=self._observer.missed or self._machine.missed,
                relay=self._machine.relay,
                zaps_at_once=self._zaps_at_once,
            )
            undo.callback(self._let_go)
            self._machine.note_resets_in(memory)
            self._keeper = self._keep(uffd, memory)
            self._reclaimer = Reclaimer(
                self._enforcer.passes,
                mode=options.reclaiming,
                rate_bytes_per_s=options.reclaim_rate_bytes_per_s,
            )
            self._survey = Survey(
                options.pid, self._enforcer.ledger, self._enforcer.loop, self._enforcer.passes
            )
            self._follower = Follower(
                self._enforcer,
                self._observer,
                [(s.hva_range, s.gpa // PAGE_BYTES) for s in self.layout.segments],
            )
            self._guard = FragmentationGuard(
                self._enforcer.loop,
                self._enforcer.ledger,
                options.fragmentation,
                self._machine.stop_balloon,
            )
            self._nodes = GuestNodes(options.pid, self.layout, self._enforcer.ledger, options.terms)
            self._tell_unseen(facts, progress)
            for lack in self._enforcer.lacks:
                progress(lack)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach; the guest goes on, unenforced."""
        self._undo.close()

    def leave_to_keeper(self) -> bool:
        """Have close() leave the traps to the keeper; False without one."""
        self._leaves = self._keeper is not None
        return self._leaves

    def _know_the_guest(
        self, undo: contextlib.ExitStack, progress: Callable[[str], None]
    ) -> MonitorFacts | None:
        """Find its RAM and its vCPUs, by the monitor where there is one."""
        options = self.options
        self._machine = Machine.connect(
            options.qmp_path,
            pid=options.pid,
            needed=_needs_monitor(options),
            held=options.held,
            progress=progress,
        )
        undo.callback(self._machine.close)
        facts = self._machine.facts()
        self.layout = discover(options.pid, self.target.cmdline, facts)
        refuse_unknown_nodes(self.layout, options.terms, options.fragmentation)
        self._tids = self.target.tids()
        self._vcpus: dict[int, int] = {}
        self._vcpus = self._vcpus_here(facts.vcpu_tids if facts else None)
        progress(
            f"guest RAM: {self.layout.ram_bytes >> 20} MiB in {len(self.layout.blocks)} "
            f"block(s), by {self.layout.source}"
        )
        for lack in self.layout.unknown:
            progress(f"not known: {lack}")
        return facts

    def _judge_the_guest(self, progress: Callable[[str], None]) -> None:
        """Refuse what would hurt it or not hold, and tell what is not as one might expect."""
        options = self.options
        _refuse_blind_harm(options, sees_resets=self._machine.relay is not None, vcpus=self._vcpus)
        self.unsuitable = judge(gather(self.target, self.layout.blocks, self._machine.monitor))
        refuse_unsuitable(self.unsuitable, options.allowed, options.pid)
        for finding in self.unsuitable:
            progress(f"does not hold: {finding.sentence}")
        if any(block.backing is Backing.HUGETLBFS for block in self.layout.blocks):
            progress(
                "left behind, for good: mappings of huge pages that windows cut, "
                f"at most {self._most_huge_mappings()} however often one attaches"
            )
        if not self._vcpus:
            progress("not known: which threads are vCPUs, so every thread counts as the guest")

    def _choose_observer(self, known: Feature, progress: Callable[[str], None]) -> Observer:
        chosen = choose(
            self.options.observer,
            Circumstances(
                pid=self.options.pid,
                blocks=self.layout.blocks,
                features=known,
                contract=self.options.terms.kind,
                has_device=self._machine.has_device,
                reports_free_pages=self._machine.reports_free_pages,
                kept_trace=self.options.held.trace if self.options.held else (),
            ),
        )
        by = f" by {chosen.observer.how}" if chosen.observer.how else ""
        progress(f"observer {chosen.observer.kind.value}{by}: {chosen.why}")
        return chosen.observer

    def _look_at_filters(self, progress: Callable[[str], None]) -> Permits:
        """Ask what may be injected; whoever attached before a takeover has asked already."""
        pid = self.options.pid
        try:
            permits = look_at_filters(
                pid,
                self.target.pidfd,
                self._injector.tids,
                trusted=self.options.trust_seccomp,
            )
        except UffdballoonError:
            if self.options.held is None:
                raise
            return Permits(zaps_at_once=False)
        if permits.unread:
            progress(f"not known: what its seccomp filters allow: {permits.unread}")
        if self.options.held is None and not all(block.shared for block in self.layout.blocks):
            permits.refuse(ZAPS, pid)
        return permits

    def _obtain(self, progress: Callable[[str], None]) -> Userfaultfd:
        permits = self._look_at_filters(progress)
        self._zaps_at_once = permits.zaps_at_once
        held = self.options.held
        if held is not None:
            self.uffd_method, self.attach_stopped_ns = "kept", 0
            progress("userfaultfd and ledger taken over from who held them")
            return Userfaultfd(held.uffd)
        obtained = obtain_userfaultfd(self._injector, self.options.uffd_method, permits=permits)
        self.uffd_method = obtained.method
        self.attach_stopped_ns = obtained.stopped_ns
        if obtained.refused_direct:
            progress(f"userfaultfd not by `direct`: {obtained.refused_direct}")
        progress(
            f"userfaultfd obtained: {obtained.method}, "
            f"{self._injector.thread_name} stopped {obtained.stopped_ns // 1000} us"
        )
        return obtained.uffd

    def _ledger_memory(self, undo: contextlib.ExitStack) -> int:
        """Return the memfd that the ledger lies in, or -1 for none."""
        if self.options.held is not None:
            memory = self.options.held.memory
        elif self.options.holding is not None:
            memory = os.memfd_create("uffdballoon-ledger", os.MFD_CLOEXEC)
        else:
            return -1
        undo.callback(os.close, memory)
        return memory

    def _keep(self, uffd: Userfaultfd, memory: int) -> Keeping | None:
        """Have all held, or go on with who holds it; one that is not wanted any more ends."""
        held, holding = self.options.held, self.options.holding
        if held is not None:
            if holding is None:
                held.keeper.end()
                held.keeper.close()
                return None
            held.keeper.serves()
            return held.keeper
        if holding is None or holding.hold is None:
            return None
        trace = self._observer.trace.fds() if self._observer.trace else ()
        monitor = self._machine.share()
        return holding.hold(Kept(uffd.fileno(), memory, self.target.pidfd, trace, monitor))

    def _let_go(self) -> None:
        self._enforcer.close()
        if self._keeper is not None:
            if not self._leaves:
                self._keeper.end()
            self._keeper.close()

    def inflate(self, span: GpaRange, granule: Granule, *, guest_agreed: bool) -> ChangeReport:
        """Take a range from the guest, for those who have no loop; see inflating()."""
        return run_job(self.inflating([span], granule, guest_agreed=guest_agreed))

    def inflating(
        self, spans: Sequence[GpaRange], granule: Granule, *, guest_agreed: bool
    ) -> Job[ChangeReport]:
        """Take ranges from the guest, a part in a step.

        Raises UsageError unless the guest has agreed, and RangeError outside of
        its RAM, for less than a granule, or for what would break more huge pages
        than are allowed to be; nothing is taken then. When the guest is reset in the middle, which
        empties the balloon, TargetBusyError.
        """
        what = spans[0] if len(spans) == 1 else f"memory in {len(spans)} ranges"
        _refuse_without_word(what, guest_agreed=guest_agreed)
        placed = yield from self._translating(spans, granule)
        self._guard.refuse_to_break([place.hva for place in placed])
        job = self._enforcer.inflate(
            [(self.layout.segment_at(place.gpa.start).block, place.hva) for place in placed]
        )
        done = yield from self._unless_reset(job)
        self._inflated_bytes += done.pages_bytes
        self._stops_ns.extend(done.zap.stops_ns)
        self._reclaimer.work(settle_ns=0)  # what its rate does not allow: keep_up() goes on
        return ChangeReport(
            requested_bytes=sum(span.size_bytes for span in spans),
            done_bytes=done.pages_bytes,
            left_out=tuple(Span.of(piece) for place in placed for piece in place.left_out),
            ranges=tuple(Span.of(place.gpa) for place in placed),
            freed_bytes=done.resident_before_bytes,
            stopped_us=StopTimes(
                count=len(done.zap.stops_ns), max=max(done.zap.stops_ns, default=0) // 1000
            ),
        )

    def _translating(self, spans: Sequence[GpaRange], granule: Granule) -> Job[list[_Placed]]:
        turn = Turn()
        placed = []
        for span in spans:
            placed.append(self._translate(span, granule))
            if turn.is_over():
                yield 0.0
        return placed

    def _unless_reset(self, job: Job[T]) -> Job[T]:
        """Step a job that takes memory; end it at a reset, from which on the guest owns all."""
        resets = self._resets
        with contextlib.closing(job):
            while True:
                try:
                    away_s = next(job)
                except StopIteration as end:
                    report: T = end.value
                    return report
                yield away_s
                if self._resets != resets:
                    raise TargetBusyError(
                        "the guest was reset in the middle of it",
                        why="a reset empties the balloon: all memory is the guest's again",
                        hint="ask again, once the guest has given the memory up anew",
                        pid=self.target.pid,
                    )

    def inflate_node(
        self, node: int, granule: Granule, *, size_bytes: int | None, guest_agreed: bool
    ) -> ChangeReport:
        """Take memory of a node from the guest, for those who have no loop."""
        return run_job(
            self.inflating_node(node, granule, size_bytes=size_bytes, guest_agreed=guest_agreed)
        )

    def inflating_node(
        self, node: int, granule: Granule, *, size_bytes: int | None, guest_agreed: bool
    ) -> Job[ChangeReport]:
        """Take whole granules of a NUMA node of the guest, from its end; all without a size.

        Raises as inflating(), and RangeError when the node has fewer; nothing is taken then.
        """
        _refuse_without_word(f"memory of node {node}", guest_agreed=guest_agreed)
        chosen = self._nodes.owned(node, granule, size_bytes)
        return (yield from self.inflating(chosen, granule, guest_agreed=True))

    def deflate_node(self, node: int, granule: Granule, size_bytes: int | None) -> ChangeReport:
        """Give memory of a node back, for those who have no loop."""
        return run_job(self.deflating_node(node, granule, size_bytes))

    def deflating_node(
        self, node: int, granule: Granule, size_bytes: int | None
    ) -> Job[ChangeReport]:
        """Give whole granules of a node back, what inflating_node() takes last first."""
        chosen = self._nodes.ballooned(node, granule, size_bytes)
        return (yield from self.deflating(chosen, granule))

    def refuse_outside_node(self, node: int, span: GpaRange) -> None:
        """Raise RangeError when a range is not memory of that node of the guest."""
        self._nodes.refuse_outside(node, span)

    def deflate(self, span: GpaRange, granule: Granule) -> ChangeReport:
        """Give a range back to the guest, for those who have no loop; see deflating()."""
        return run_job(self.deflating([span], granule))

    def deflating(self, spans: Sequence[GpaRange], granule: Granule) -> Job[ChangeReport]:
        """Give ranges back to the guest, a part in a step.

        What was not in the balloon stays as it is. Raises RangeError outside of its RAM.
        """
        placed = yield from self._translating(spans, granule)
        turn = Turn()
        done_bytes = 0
        for place in placed:
            for part in place.hva.pieces(_DEFLATED_BYTES):
                part_bytes = self._enforcer.deflate(part)
                self._deflated_bytes += part_bytes
                done_bytes += part_bytes
                if turn.is_over():
                    yield 0.0
        return ChangeReport(
            requested_bytes=sum(span.size_bytes for span in spans),
            done_bytes=done_bytes,
            left_out=tuple(Span.of(piece) for place in placed for piece in place.left_out),
            ranges=tuple(Span.of(place.gpa) for place in placed),
        )

    def disagreements(self) -> list[GpaRange]:
        """List ballooned stretches that hold memory in the target: there should be none."""
        return [self._to_gpa(hva) for hva in run_job(self._enforcer.disagreeing())]

    def verify(self) -> Verification:
        """Compare the ledger with the page tables, for those who have no loop; see verifying()."""
        return run_job(self.verifying())

    def verifying(self) -> Job[Verification]:
        """Walk the page tables; list where ledger and kernel, or the guest, disagree.

        For a quiet moment: what is being given up right now is in the ledger, and
        still there.
        """
        self._follower.look()
        found = yield from self._enforcer.disagreeing()
        ballooned_bytes = self._enforcer.ledger.ballooned_bytes
        account = self._balloon_state(ballooned_bytes)
        return Verification(
            ballooned_bytes=ballooned_bytes,
            actual_bytes=account.actual_bytes,
            unaccounted_bytes=account.unaccounted_bytes,
            disagreements=tuple(Span.of(self._to_gpa(hva)) for hva in found),
        )

    def status(self) -> Status:
        """Return the state of it all, for those who have no loop; see reporting()."""
        return run_job(self.reporting())

    def reporting(self) -> Job[Status]:
        """Return the state of it all; page tables are walked only where that is little.

        Where it is much, what was found by the last survey is told, and keep_up() goes on with
        another.
        """
        surveyed = yield from self._survey.renewing()
        return self._report(surveyed)

    def _report(self, surveyed: Surveyed) -> Status:
        loop = self._enforcer.loop
        stats = loop.stats()
        ledger = self._enforcer.ledger
        ballooned_bytes = ledger.ballooned_bytes
        tallies = {block: ledger.tally(block) for block in self.layout.blocks}
        tally = Tally.total(tallies.values())
        found = surveyed.total
        return Status(
            pid=self.target.pid,
            state=TargetState.GONE if self.target.has_exited() else TargetState.ATTACHED,
            uffd_method=self.uffd_method,
            observer=self._observer.kind,
            contract=self._contract_state(ballooned_bytes),
            policy=str(self.options.policy),
            ram_bytes=self.layout.ram_bytes,
            ballooned_bytes=ballooned_bytes,
            reclaimed_bytes=found.free_bytes,
            reclaimed_source=self._reclaimer.source,
            surveyed_age_s=surveyed.age_s,
            broken_blocks=tally.broken,
            reclaim=self._reclaimer.report(found),
            khugepaged=self._reclaimer.report_khugepaged(found),
            fragmentation=self._guard.report(tally),
            ram_blocks=self._nodes.blocks_report(tallies),
            nodes=self._nodes.report(surveyed.measured, tallies, self._guard.limit_of),
            balloon=self._balloon_state(ballooned_bytes),
            ram_change_bytes=self._machine.ram_change_bytes(),
            guest_memory=self._machine.guest_statistics(),
            vmas=surveyed.mappings,
            cut_huge_mappings=surveyed.cut_huge_mappings,
            held=tuple(self.held()),
            inflated_pages_total=self._inflated_bytes // PAGE_BYTES + stats.observed_inflated,
            deflated_pages_total=self._deflated_bytes // PAGE_BYTES + stats.observed_deflated,
            windows=stats.windows,
            armed_bytes=stats.armed_bytes,
            touches=touches_of(stats),
            actions={a: count for a, count in stats.actions.items() if a is not Action.NONE},
            observed=observed_of(stats),
            events_dropped=stats.events_dropped,
            answers=answers_of(stats),
            latency_ns=latency_of(loop),
            latency_histogram_ns=tuple(loop.answer_histogram()),
            stopped_us=Stops(
                thread=self._injector.thread_name,
                main_thread_stops=self._injector.main_stops,
                attach=self.attach_stopped_ns // 1000,
                zap_count=len(self._stops_ns),
                zap_max=max(self._stops_ns, default=0) // 1000,
            ),
        )

    def touch_counts(self) -> LoopStats:
        """Return the fault loop's counters alone, which costs nothing; status() asks QEMU, too."""
        return self._enforcer.loop.stats()

    def block_map(self, recent_s: float) -> BlockMap:
        """Take a picture of the guest's memory, for those who have no loop; see mapping()."""
        return run_job(self.mapping(recent_s))

    def mapping(self, recent_s: float) -> Job[BlockMap]:
        """Return what each 2 MiB of the guest's memory is; touches of ``recent_s`` are shown."""
        return look_at_blocks(self._enforcer, self.layout, pid=self.target.pid, recent_s=recent_s)

    @property
    def borrowed_tid(self) -> int:
        """The thread that system calls are run in."""
        return self._injector.tid

    @property
    def vcpus(self) -> dict[int, int]:
        """The numbers of the vCPUs by thread id, as far as they are known."""
        return dict(self._vcpus)

    def event_fileno(self) -> int:
        """Return an fd that is readable while events wait."""
        return self._enforcer.loop.event_fileno()

    def target_fileno(self) -> int:
        """Return the pidfd, readable once the target has ended."""
        return self.target.pidfd

    def monitor_fileno(self) -> int | None:
        """Return an fd that is readable while the monitor has something to tell; None without."""
        return self._machine.fileno()

    def drain_events(self) -> list[Event]:
        """Take waiting events, and do what they ask for.

        A touch that a rung held for us (`pause`, `poison`) is seen to here, so
        that this has to be called whenever event_fileno() is readable.
        """
        events: list[Event] = [self._event(record) for record in self._enforcer.loop.drain()]
        actions = {event.action for event in events}
        if Action.PAUSE in actions:
            events.extend(self._pause())
        if Action.POISON in actions:
            events.extend(self._poison())
        return events

    def drain_monitor(self) -> list[Notice]:
        """Take what the monitor told, and follow it: a reset empties the balloon."""
        heard = self._machine.hear()
        if self._machine.is_lost:
            self._enforcer.loop.watch_resets(None)
        if heard.reset_ns is not None:
            self._reset_at_ns = heard.reset_ns
        heard.notices.extend(self._catch_up_with_reset())
        if heard.balloon_moved:
            self._follower.look()
        return heard.notices

    def _catch_up_with_reset(self) -> list[Notice]:
        """Reset as the guest was; what fails is told, and keep_up() tries again."""
        if self._reset_at_ns is None:
            return []
        try:
            self.reset(at_ns=self._reset_at_ns)
        except TargetGoneError:
            return []
        except UffdballoonError as error:
            return [notice(EventKind.RESET_FAILED, f"trying again: {error}")]
        self._reset_at_ns = None
        return []

    def reset(self, at_ns: int = 0) -> None:
        """Empty the balloon, as a reset of the guest does; its boot grace begins.

        What the guest gave up after ``at_ns`` (CLOCK_MONOTONIC) stays in it.
        """
        before = self._enforcer.ledger.ballooned_bytes
        self._resets += 1
        self._enforcer.loop.reset(at_ns)
        self._deflated_bytes += before - self._enforcer.ledger.ballooned_bytes
        self._guard.go_on()

    def ask_balloon(self, target_bytes: int) -> BalloonProgress:
        """Ask the guest's driver to leave it that much memory; return balloon_progress().

        Raises UnsupportedError without a monitor or device, RangeError for more
        than its RAM or nothing at all, QmpError when QEMU refuses. Nothing is
        asked for, and the state is stopped, when more huge pages are broken than may be.
        """
        obstacle = self._guard.obstacle()
        actual = self._machine.actual_bytes() if obstacle else None
        if actual is not None and target_bytes < actual:
            return self._with_ballooned(
                DriverProgress(
                    target_bytes=target_bytes,
                    before_bytes=actual,
                    actual_bytes=actual,
                    state=ProgressState.STOPPED,
                    why=obstacle,
                )
            )
        plugged = self._machine.ram_change_bytes() or 0
        asked = self._machine.ask_balloon(target_bytes, self.layout.allocated_bytes + plugged)
        self._guard.go_on()
        return self._with_ballooned(asked)

    def balloon_progress(self) -> BalloonProgress:
        """Return how far the guest has come to what it was asked for last."""
        return self._with_ballooned(self._machine.balloon_progress())

    def _with_ballooned(self, progress: DriverProgress) -> BalloonProgress:
        return BalloonProgress.of(progress, self._enforcer.ledger.ballooned_bytes)

    def release(self, tid: int | None = None) -> int:
        """Let the frozen thread ``tid`` go on, or all that are frozen; return how many did."""
        return self._enforcer.loop.release(tid or 0)

    def held(self) -> list[Held]:
        """List the touches that are not answered yet: frozen, throttled, or waiting for us."""
        now_ns = time.monotonic_ns()
        return [
            Held(
                gpa=self.layout.to_gpa(held.span.start),
                size=held.span.size_bytes,
                vcpu=self._vcpus.get(held.tid),
                tid=held.tid,
                access=held.access,
                action=held.action,
                held_s=(now_ns - held.since_ns) / 1e9,
                left_s=(held.deadline_ns - now_ns) / 1e9 if held.deadline_ns else None,
            )
            for held in self._enforcer.loop.parked()
        ]

    @property
    def opens_perf_events(self) -> bool:
        """Whether the observer opens more of them, for threads that the target will have."""
        return self._observer.trace is not None and self._observer.trace.opens_more

    @property
    def monitor_path(self) -> str | None:
        """The monitor's socket as we reach it; None without one."""
        return self._machine.monitor.path if self._machine.monitor is not None else None

    def news_fileno(self) -> int:
        """Return an fd that is readable when the guest's balloon moved and is quiet again."""
        return self._follower.fileno()

    def keep_up(self) -> Upkeep:
        """Tell what the guest gave up and took back, and do what is due now and then.

        Windows are armed without it, by a thread of the C library. What keeps memory
        is split here, at its rate. To be called when
        news_fileno() is readable, after events, and again when what it returned says so.
        """
        notices = self._catch_up_with_reset()
        try:
            with contextlib.suppress(WindowBudgetError):  # take_news() tells of it
                self._follower.look()
            notices += self._follower.take_news()
            notices += self._guard.look()
            reclaim_s = self._reclaimer.work()
            survey_s = self._survey.work()
            tids = self.target.tids()
            if tids != self._tids:
                self._vcpus = self._ask_vcpus() or self._vcpus
                self._enforcer.loop.set_vcpus(sorted(self._vcpus))
                self._tids = tids
        except TargetGoneError:
            return Upkeep(notices, None)  # whoever waits on target_fileno() knows
        if back := self._machine.reconnect():
            notices += back
            self._enforcer.loop.watch_resets(self._machine.relay)
        lost_s = RECONNECT_S if self._machine.is_lost else None
        reset_s = None if self._reset_at_ns is None else _RESET_AGAIN_S
        waits = (reclaim_s, survey_s, lost_s, reset_s, self._guard.due_s(), self._machine.due_s())
        return Upkeep(notices, min((w for w in waits if w is not None), default=None))

    def settle(self, patience_s: float = _PATIENCE_S) -> list[Event]:
        """Serve as a manager does, until the guest's balloon is quiet; return the events.

        For those who have no loop of their own. What still moves after
        ``patience_s`` is left as it is.
        """
        told: list[Event] = []
        deadline = time.monotonic() + patience_s
        calm = 0
        while calm < _CALM_LOOKS and time.monotonic() < deadline:
            news = self.keep_up().notices + self.drain_monitor()
            restless = self._follower.look() or self._reclaimer.is_pending
            calm = 0 if news or restless else calm + 1
            told += news
            while events := self.drain_events():
                told += events
            time.sleep(_LOOK_S)
        return told

    def statistics(self) -> Statistics:
        """Return how fragmented the balloon is, and each inflate was."""
        return self._follower.statistics(self.target.pid, self.layout.ram_bytes)

    def recording(self) -> Job[Recording]:
        """Return the balloon's runs as they are, a part in a step."""
        turn = Turn()
        runs = []
        for run in self._ballooned_runs():
            runs.append(run)
            if turn.is_over():
                yield 0.0
        return Recording(self.layout.ram_bytes, tuple(runs))

    def _ballooned_runs(self) -> Iterator[tuple[int, int]]:
        """Yield the balloon's runs as (gfn, pages)."""
        for segment in self.layout.segments:
            for run in self._enforcer.ledger.runs(segment.hva_range):
                gpa = segment.gpa + run.start - segment.hva
                yield gpa // PAGE_BYTES, run.size_bytes // PAGE_BYTES

    def _balloon_state(self, ballooned_bytes: int) -> BalloonAccount:
        """Compare the ledger with what the guest says; None where nobody can be asked."""
        actual = self._machine.actual_bytes()
        plugged = self._machine.ram_change_bytes() or 0
        told = None if actual is None else self.layout.allocated_bytes + plugged - actual
        return BalloonAccount(
            actual_bytes=actual,
            unaccounted_bytes=None if told is None else told - ballooned_bytes,
        )

    def _tell_unseen(self, facts: MonitorFacts | None, progress: Callable[[str], None]) -> None:
        """Say what was in the balloon before anybody looked: nobody can tell which pages."""
        actual = facts.balloon_actual_bytes if facts else None
        if actual is not None and actual < self.layout.allocated_bytes:
            there = format_size(self.layout.allocated_bytes - actual)
            progress(
                f"not known: which pages make up the {there} "
                "that are in the balloon already; they are not enforced until they are given up "
                f"anew (uffdballoon set {self.target.pid} --balloon SIZE, out and in)"
            )

    def _ask_vcpus(self) -> dict[int, int]:
        told = self._machine.vcpu_tids()
        if told is None and self._machine.monitor is not None:
            return self._vcpus  # as far as we know
        return self._vcpus_here(told)

    def _vcpus_here(self, told: Mapping[int, int] | None) -> dict[int, int]:
        """Map our ids of the vCPUs' threads to their numbers, as told or as it can be seen."""
        if told is None:
            return find_vcpus(self.target, self._vcpus)
        return self.target.seen_from_here(told)

    def _pause(self) -> list[Notice]:
        loop = self._enforcer.loop

        def let_go() -> None:
            for held in loop.parked():
                if held.action is Action.PAUSE:
                    loop.resolve(held, Resolution.GRANT)

        assert self._machine.monitor is not None
        try:
            stop_vm(self._machine.monitor, let_go)
        except UffdballoonError as error:
            return [notice(EventKind.PAUSE_FAILED, str(error))]
        return [notice(EventKind.PAUSED)]

    def _poison(self) -> list[Notice]:
        failures = []
        for held in self._enforcer.loop.parked():
            if held.action is not Action.POISON:
                continue
            try:
                self._enforcer.poison(held)
            except UffdballoonError as error:
                self._enforcer.loop.resolve(held, Resolution.GRANT)
                failures.append(notice(EventKind.POISON_FAILED, str(error)))
        return failures

    def _contract_state(self, ballooned_bytes: int) -> ContractStatus:
        terms = self.options.terms
        grace = self._enforcer.loop.grace()
        until_ns = grace.until_ns if grace is not None else None
        left_bytes = grace.left_bytes if grace is not None else None
        now_ns = time.monotonic_ns()
        return ContractStatus(
            kind=terms.kind,
            floor_bytes=terms.floor_bytes,
            below_floor=ballooned_bytes < terms.floor_bytes,
            in_grace=grace is not None,
            grace_left_s=UNSET if until_ns is None else max(0.0, (until_ns - now_ns) / 1e9),
            grace_left_bytes=UNSET if left_bytes is None else left_bytes,
        )

    def _window_budget(self) -> int:
        """Return how many windows there may be."""
        if self.options.max_windows is not None:
            return self.options.max_windows
        mappings = read_mappings(self.target.pid)
        return window_budget(mappings, self.layout.blocks, max_map_count())

    def _most_huge_mappings(self) -> int:
        if self.options.max_huge_mappings is not None:
            return self.options.max_huge_mappings
        return most_huge_mappings(max_map_count())

    def _event(self, record: TouchRecord) -> TouchEvent:
        kind = record.action if record.action is Action.NO_MEMORY else record.verdict
        return TouchEvent(
            time_ns=record.time_ns,
            kind=EventKind(kind.value),
            gpa=self.layout.to_gpa(record.span.start),
            size=record.span.size_bytes,
            vcpu=self._vcpus.get(record.tid),
            tid=record.tid,
            access=record.access,
            verdict=record.verdict,
            action=record.action,
            role=record.role,
            sequence=record.sequence,
            answer_ns=record.answer_ns,
        )

    def _translate(self, span: GpaRange, granule: Granule) -> _Placed:
        """Round a guest range inward, to whole granules of the host's memory."""
        if span.size_bytes <= 0:
            raise RangeError(f"{span} is empty", why="its size is 0", hint="give a --size above 0")
        hva, block = self.layout.to_hva(span)
        if block.backing is Backing.HUGETLBFS and granule is not Granule.HUGE2M:
            raise UsageError(
                f"RAM block {block.idstr!r} has no pages of {granule.value}",
                why="it is hugetlbfs memory, which comes and goes in pages of 2 MiB",
                hint="use --granule huge2m",
            )
        whole, left_out = round_inward(hva, granule, block.file_start)
        if whole is None:
            raise RangeError(
                f"{span} holds no whole {granule.value} granule",
                why=f"granules are {granule.size_bytes >> 10} KiB, aligned in the host's memory, "
                "or in its file",
                hint="give a larger range, or --granule 4k",
            )
        return _Placed(self._to_gpa(whole), whole, tuple(self._to_gpa(piece) for piece in left_out))

    def _to_gpa(self, span: HvaRange) -> GpaRange:
        gpa = self.layout.to_gpa(span.start)
        assert gpa is not None
        return GpaRange.of(gpa, span.size_bytes)
