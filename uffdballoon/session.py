# SPDX-License-Identifier: GPL-2.0-or-later
"""One attached target, from attach to detach. A reader starts here.

The only place that wires the parts together: the target is pinned, its RAM is
found, a userfaultfd of it is obtained, and an enforcer holds the guest to what
it gave up. Leaving the context lets it all go, and the guest goes on.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.attach.obtain import Choice, obtain_userfaultfd
from uffdballoon.attach.target import Target
from uffdballoon.contract.policy import DEFAULT_POLICY, Policy
from uffdballoon.engine.enforcer import Enforcer
from uffdballoon.errors import (
    QmpError,
    RangeError,
    TargetGoneError,
    UffdballoonError,
    UnsupportedError,
    UsageError,
)
from uffdballoon.kernel.fault_loop import LoopOptions, Resolution
from uffdballoon.kernel.host import max_map_count
from uffdballoon.kernel.uffd import Feature, query_features
from uffdballoon.memory.discovery import discover
from uffdballoon.memory.maps import read_mappings
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange, HvaRange
from uffdballoon.model.granule import Granule, round_inward
from uffdballoon.model.ladder import RungKind
from uffdballoon.model.ram import Backing
from uffdballoon.model.terms import TOLD, Terms
from uffdballoon.model.touch import Action
from uffdballoon.qmp.facts import collect, vcpu_tids
from uffdballoon.qmp.monitor import Monitor
from uffdballoon.qmp.pausing import stop_vm
from uffdballoon.zap.private import DEFAULT_STOP_BUDGET_NS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from uffdballoon.kernel.fault_loop import TouchRecord
    from uffdballoon.memory.facts import MonitorFacts
    from uffdballoon.model.ram import Layout


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What to attach to, and how."""

    pid: int
    qmp_path: str | None = None
    terms: Terms = TOLD
    policy: Policy = DEFAULT_POLICY
    max_windows: int | None = None
    follow_cpu: bool = True
    uffd_method: Choice = "auto"
    stop_budget_ns: int = DEFAULT_STOP_BUDGET_NS


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What an inflate or deflate did.

    ``done_bytes`` are in another state than before; ``left_out`` was rounded
    away; ``freed_bytes`` were resident and are not any more.
    """

    requested_bytes: int
    done_bytes: int
    left_out: tuple[GpaRange, ...]
    freed_bytes: int = 0
    stops_us: tuple[int, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        return {
            "requested_bytes": self.requested_bytes,
            "done_bytes": self.done_bytes,
            "freed_bytes": self.freed_bytes,
            "left_out": [{"gpa": s.start, "size": s.size_bytes} for s in self.left_out],
            "stopped_us": {"count": len(self.stops_us), "max": max(self.stops_us, default=0)},
        }


def look_at(target: Target, qmp_path: str | None) -> tuple[Layout, MonitorFacts | None]:
    """Find a target's RAM, with its monitor where a path is given; change nothing."""
    if qmp_path is None:
        return discover(target.pid, target.cmdline, None), None
    with Monitor.connect(qmp_path, pid=target.pid) as monitor:
        facts = collect(monitor)
    return discover(target.pid, target.cmdline, facts), facts


def _refuse_what_cannot_be(options: SessionOptions) -> None:
    if options.policy.has(RungKind.PAUSE) and options.qmp_path is None:
        raise UsageError(
            "the rung pause needs the monitor",
            why="QEMU is stopped by QMP, and no socket of it was given",
            hint="give --qmp PATH, or another rung",
        )
    if options.policy.has(RungKind.POISON) and not query_features() & Feature.POISON:
        raise UnsupportedError(
            "the rung poison cannot be performed",
            why="this kernel has no UFFDIO_POISON (Linux 6.6)",
            hint="use kill, or another rung",
        )


class Session:
    """An attached target; a context manager that detaches.

    Raises the named errors of what it wires. Must be used by one thread.
    """

    def __init__(
        self, options: SessionOptions, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self.options = options
        self._inflated_bytes = 0
        self._deflated_bytes = 0
        self._stops_ns: list[int] = []
        with contextlib.ExitStack() as undo:
            self.target = undo.enter_context(Target.open(options.pid))
            progress(f"process {options.pid}: {self.target.exe}")
            self.target.refuse_if_busy()
            self._monitor = None
            facts = None
            if options.qmp_path is not None:
                self._monitor = undo.enter_context(
                    Monitor.connect(options.qmp_path, pid=options.pid)
                )
                facts = collect(self._monitor)
            _refuse_what_cannot_be(options)
            self.layout = discover(options.pid, self.target.cmdline, facts)
            self._tids = self.target.tids()
            self._vcpus = dict(facts.vcpu_tids) if facts else self.target.vcpus()
            progress(
                f"guest RAM: {self.layout.ram_bytes >> 20} MiB in {len(self.layout.blocks)} "
                f"block(s), by {self.layout.source}"
            )
            for lack in self.layout.unknown:
                progress(f"not known: {lack}")
            if not self._vcpus:
                progress("not known: which threads are vCPUs, so every thread counts as the guest")
            known = query_features()
            obtained = obtain_userfaultfd(options.pid, self.target.pidfd, options.uffd_method)
            undo.enter_context(obtained.uffd)
            self.uffd_method = obtained.method
            self.attach_stopped_ns = obtained.stopped_ns
            if obtained.refused_direct:
                progress(f"userfaultfd not by `direct`: {obtained.refused_direct}")
            progress(
                f"userfaultfd obtained: {obtained.method}, "
                f"main thread stopped {obtained.stopped_ns // 1000} us"
            )
            self._enforcer = Enforcer(
                self.target,
                self.layout.blocks,
                obtained.uffd,
                known=known,
                options=LoopOptions(
                    terms=options.terms,
                    rungs=options.policy.rungs,
                    window_budget=self._window_budget(),
                    follow_cpu=options.follow_cpu,
                ),
                vcpus=sorted(self._vcpus),
                stop_budget_ns=options.stop_budget_ns,
            )
            undo.callback(self._enforcer.close)
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

    def inflate(
        self,
        span: GpaRange,
        granule: Granule,
        *,
        guest_agreed: bool,
        progress: Callable[[int], None] = lambda _: None,
    ) -> ChangeReport:
        """Take a range from the guest; ``progress`` is told the bytes done so far.

        Raises UsageError unless the guest has agreed, and RangeError outside of
        its RAM or for less than a granule.
        """
        if not guest_agreed:
            raise UsageError(
                f"{span} was not taken",
                why="what is in it is lost to the guest, and nobody said that the guest agreed",
                hint="when the guest has given this range up, say so with --guest-agreed",
            )
        whole, hva, left_out = self._translate(span, granule)
        block = self.layout.segment_at(whole.start).block
        done = self._enforcer.inflate(block, hva, progress)
        self._inflated_bytes += done.pages_bytes
        self._stops_ns.extend(done.zap.stops_ns)
        return ChangeReport(
            requested_bytes=span.size_bytes,
            done_bytes=done.pages_bytes,
            left_out=left_out,
            freed_bytes=done.resident_before_bytes,
            stops_us=tuple(ns // 1000 for ns in done.zap.stops_ns),
        )

    def deflate(self, span: GpaRange, granule: Granule) -> ChangeReport:
        """Give a range back to the guest; what was not in the balloon stays as it is."""
        _, hva, left_out = self._translate(span, granule)
        done_bytes = self._enforcer.deflate(hva)
        self._deflated_bytes += done_bytes
        return ChangeReport(span.size_bytes, done_bytes, left_out)

    def disagreements(self) -> list[GpaRange]:
        """List ballooned stretches that hold memory in the target: there should be none."""
        return [self._to_gpa(hva) for hva in self._enforcer.disagreements()]

    def status(self) -> dict[str, Any]:
        """Return the state in the shape of ``status --json``."""
        stats = self._enforcer.loop.stats()
        ballooned_bytes = self._enforcer.ledger.ballooned_bytes
        held_bytes = self._held_bytes()
        percentile = self._enforcer.loop.answer_ns
        return {
            "pid": self.target.pid,
            "state": "gone" if self.target.has_exited() else "attached",
            "uffd_method": self.uffd_method,
            "observer": "direct",
            "contract": self._contract_state(ballooned_bytes),
            "policy": str(self.options.policy),
            "ram_bytes": self.layout.ram_bytes,
            "ballooned_bytes": ballooned_bytes,
            "reclaimed_bytes": ballooned_bytes - held_bytes,
            "windows": stats.windows,
            "armed_bytes": stats.armed_bytes,
            "vmas": self._count_vmas(),
            "touches": {
                "ordinary": stats.ordinary,
                "granted": stats.granted,
                "violations": stats.violations,
                "host_reads": stats.host_reads,
                "slipped_writes": stats.slipped_writes,
                "filled_around_pages": stats.around_pages,
            },
            "actions": {
                action.value: count
                for action, count in stats.actions.items()
                if action is not Action.NONE
            },
            "held": self.held(),
            "inflated_pages_total": self._inflated_bytes // PAGE_BYTES,
            "deflated_pages_total": self._deflated_bytes // PAGE_BYTES,
            "broken_blocks": self._count_broken_blocks(),
            "events_dropped": stats.events_dropped,
            "answers": {
                "exists": stats.exists,
                "retried": stats.retried,
                "gone": stats.gone,
                "failed": stats.failed,
                "together": stats.together,
            },
            "latency_ns": {
                "p50": percentile(500),
                "p99": percentile(990),
                "p999": percentile(999),
            },
            "latency_histogram_ns": self._enforcer.loop.answer_histogram(),
            "stopped_us": {
                "attach": self.attach_stopped_ns // 1000,
                "zap_count": len(self._stops_ns),
                "zap_max": max(self._stops_ns, default=0) // 1000,
            },
        }

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
        return self._monitor.event_fileno() if self._monitor is not None else None

    def drain_events(self) -> list[dict[str, Any]]:
        """Take waiting events, each in the shape of an event line, and do what they ask for.

        A touch that a rung held for us (`pause`, `poison`) is seen to here, so
        that this has to be called whenever event_fileno() is readable.
        """
        events = [self._event(record) for record in self._enforcer.loop.drain()]
        actions = {event["action"] for event in events}
        if Action.PAUSE.value in actions:
            events.extend(self._pause())
        if Action.POISON.value in actions:
            events.extend(self._poison())
        return events

    def drain_monitor(self) -> list[dict[str, Any]]:
        """Take what the monitor told, and follow it: a reset empties the balloon."""
        if self._monitor is None:
            return []
        told = {str(event["event"]) for event in self._monitor.take_events()}
        if "RESET" not in told:
            return []
        self.reset()
        return [self._notice("reset")]

    def reset(self) -> None:
        """Empty the balloon, as a reset of the guest does; its boot grace begins."""
        self._deflated_bytes += self._enforcer.ledger.ballooned_bytes
        self._enforcer.loop.reset()

    def release(self, tid: int | None = None) -> int:
        """Let the frozen thread ``tid`` go on, or all that are frozen; return how many did."""
        return self._enforcer.loop.release(tid or 0)

    def held(self) -> list[dict[str, Any]]:
        """List the touches that are not answered yet: frozen, throttled, or waiting for us."""
        now_ns = time.monotonic_ns()
        return [
            {
                "gpa": self.layout.to_gpa(held.span.start),
                "size": held.span.size_bytes,
                "vcpu": self._vcpus.get(held.tid),
                "tid": held.tid,
                "access": held.access.value,
                "action": held.action.value,
                "held_s": (now_ns - held.since_ns) / 1e9,
                "left_s": (held.deadline_ns - now_ns) / 1e9 if held.deadline_ns else None,
            }
            for held in self._enforcer.loop.parked()
        ]

    def keep_up(self) -> None:
        """Do what is due now and then: once a second is often enough.

        Lets go of windows that grants have emptied, and learns which threads
        are vCPUs by now.
        """
        try:
            self._enforcer.loop.tidy()
            tids = self.target.tids()
            if tids != self._tids:
                self._vcpus = self._ask_vcpus()
                self._enforcer.loop.set_vcpus(sorted(self._vcpus))
                self._tids = tids
        except TargetGoneError:
            pass  # whoever waits on target_fileno() knows

    def _ask_vcpus(self) -> dict[int, int]:
        if self._monitor is not None:
            try:
                return vcpu_tids(self._monitor)
            except QmpError:
                return self._vcpus  # as far as we know
        return self.target.vcpus()

    def _pause(self) -> list[dict[str, Any]]:
        loop = self._enforcer.loop

        def let_go() -> None:
            for held in loop.parked():
                if held.action is Action.PAUSE:
                    loop.resolve(held, Resolution.GRANT)

        assert self._monitor is not None
        try:
            stop_vm(self._monitor, let_go)
        except QmpError as error:
            return [self._notice("pause-failed", str(error))]
        return [self._notice("paused")]

    def _poison(self) -> list[dict[str, Any]]:
        failures = []
        for held in self._enforcer.loop.parked():
            if held.action is not Action.POISON:
                continue
            try:
                self._enforcer.poison(held)
            except UffdballoonError as error:
                self._enforcer.loop.resolve(held, Resolution.GRANT)
                failures.append(self._notice("poison-failed", str(error)))
        return failures

    @staticmethod
    def _notice(kind: str, why: str = "") -> dict[str, Any]:
        """Return an event line of something that is no touch."""
        nothing = ("gpa", "size", "vcpu", "tid", "access", "verdict", "action")
        event = {"time_ns": time.time_ns(), "kind": kind, **dict.fromkeys(nothing)}
        return {**event, "why": why} if why else event

    def _contract_state(self, ballooned_bytes: int) -> dict[str, Any]:
        terms = self.options.terms
        grace = self._enforcer.loop.grace()
        state: dict[str, Any] = {
            "kind": terms.kind.value,
            "floor_bytes": terms.floor_bytes,
            "below_floor": ballooned_bytes < terms.floor_bytes,
            "in_grace": grace is not None,
        }
        if grace is not None and grace.until_ns is not None:
            state["grace_left_s"] = max(0.0, (grace.until_ns - time.monotonic_ns()) / 1e9)
        if grace is not None and grace.left_bytes is not None:
            state["grace_left_bytes"] = grace.left_bytes
        return state

    def _window_budget(self) -> int:
        """Return how many windows there may be: by default half of the mappings that are left.

        A window alone in its RAM block costs two mappings: it is one, and cuts one in two.
        """
        if self.options.max_windows is not None:
            return self.options.max_windows
        left = max_map_count() - len(read_mappings(self.target.pid))
        return max(1, left // 4)

    def _event(self, record: TouchRecord) -> dict[str, Any]:
        return {
            "time_ns": record.time_ns,
            "kind": record.verdict.value,
            "gpa": self.layout.to_gpa(record.span.start),
            "size": record.span.size_bytes,
            "vcpu": self._vcpus.get(record.tid),
            "tid": record.tid,
            "access": record.access.value,
            "verdict": record.verdict.value,
            "action": record.action.value,
            "role": record.role.value,
            "sequence": record.sequence,
            "answer_ns": record.answer_ns,
        }

    def _translate(
        self, span: GpaRange, granule: Granule
    ) -> tuple[GpaRange, HvaRange, tuple[GpaRange, ...]]:
        """Round a guest range inward; return it as gpa and hva, and what was left out."""
        if span.size_bytes <= 0:
            raise RangeError(f"{span} is empty", why="its size is 0", hint="give a --size above 0")
        hva, block = self.layout.to_hva(span)
        if block.backing is Backing.HUGETLBFS and granule is not Granule.HUGE2M:
            raise UsageError(
                f"RAM block {block.idstr!r} has no pages of {granule.value}",
                why="it is hugetlbfs memory, which comes and goes in pages of 2 MiB",
                hint="use --granule huge2m",
            )
        whole, left_out = round_inward(hva, granule)
        if whole is None:
            raise RangeError(
                f"{span} holds no whole {granule.value} granule",
                why=f"granules are {granule.size_bytes >> 10} KiB, aligned in the host's memory",
                hint="give a larger range, or --granule 4k",
            )
        return self._to_gpa(whole), whole, tuple(self._to_gpa(piece) for piece in left_out)

    def _to_gpa(self, span: HvaRange) -> GpaRange:
        gpa = self.layout.to_gpa(span.start)
        assert gpa is not None
        return GpaRange.of(gpa, span.size_bytes)

    def _held_bytes(self) -> int:
        """Sum up the ballooned memory that is there all the same; a dead target has none."""
        try:
            return sum(span.size_bytes for span in self._enforcer.disagreements())
        except TargetGoneError:
            return 0

    def _count_vmas(self) -> int:
        try:
            return len(read_mappings(self.target.pid))
        except TargetGoneError:
            return 0

    def _count_broken_blocks(self) -> int:
        """Count 2 MiB blocks of the host that are ballooned in part."""
        broken: set[int] = set()
        for block in self.layout.blocks:
            for run in self._enforcer.ledger.runs(block.hva_range):
                broken.update(
                    edge // HUGE_BYTES for edge in (run.start, run.end) if edge % HUGE_BYTES
                )
        return len(broken)
