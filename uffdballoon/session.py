# SPDX-License-Identifier: GPL-2.0-or-later
"""One attached target, from attach to detach. A reader starts here.

The only place that wires the parts together: the target is pinned, its RAM is
found, a userfaultfd of it is obtained, and an enforcer holds the guest to what
it gave up. Leaving the context lets it all go, and the guest goes on.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.attach.obtain import Choice, obtain_userfaultfd
from uffdballoon.attach.target import Target
from uffdballoon.contract.policy import DEFAULT_POLICY, Policy
from uffdballoon.engine.enforcer import Enforcer
from uffdballoon.errors import RangeError, TargetGoneError, UsageError
from uffdballoon.kernel.uffd import query_features
from uffdballoon.memory.discovery import discover
from uffdballoon.memory.maps import read_mappings
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange, HvaRange
from uffdballoon.model.granule import Granule, round_inward
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Role
from uffdballoon.qmp.facts import collect
from uffdballoon.qmp.monitor import Monitor
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
    policy: Policy = DEFAULT_POLICY
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
    facts = None
    if qmp_path is not None:
        with Monitor.connect(qmp_path, pid=target.pid) as monitor:
            facts = collect(monitor)
    return discover(target.pid, target.cmdline, facts), facts


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
            self.layout, facts = look_at(self.target, options.qmp_path)
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
                policy=options.policy,
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
            "contract": {"kind": "told", "floor_bytes": 0},
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
            },
            "actions": {
                "grant": stats.action_grant,
                "zero-read": stats.action_zero_read,
                "kill": stats.action_kill,
            },
            "inflated_pages_total": self._inflated_bytes // PAGE_BYTES,
            "deflated_pages_total": self._deflated_bytes // PAGE_BYTES,
            "broken_blocks": self._count_broken_blocks(),
            "events_dropped": stats.events_dropped,
            "answers": {
                "exists": stats.exists,
                "retried": stats.retried,
                "gone": stats.gone,
                "failed": stats.failed,
            },
            "latency_ns": {
                "p50": percentile(500),
                "p99": percentile(990),
                "p999": percentile(999),
            },
            "stopped_us": {
                "attach": self.attach_stopped_ns // 1000,
                "zap_count": len(self._stops_ns),
                "zap_max": max(self._stops_ns, default=0) // 1000,
            },
        }

    def event_fileno(self) -> int:
        """Return an fd that is readable while events wait."""
        return self._enforcer.loop.event_fileno()

    def target_fileno(self) -> int:
        """Return the pidfd, readable once the target has ended."""
        return self.target.pidfd

    def drain_events(self) -> list[dict[str, Any]]:
        """Take waiting events, each in the shape of an event line."""
        return [self._event(record) for record in self._enforcer.loop.drain()]

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
            "by_host": record.role is Role.HOST,
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
