# SPDX-License-Identifier: GPL-2.0-or-later
"""The wiring of an attach: the only place that knows all parts, and their order.

The target is pinned, its RAM is found and judged, a userfaultfd of it is obtained, and an
enforcer holds the guest to what it gave up. What is undone at the end is undone backwards.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from uffdballoon.balloon.enforcer import Enforcer
from uffdballoon.balloon.follower import Follower
from uffdballoon.balloon.fragmentation import FragmentationGuard
from uffdballoon.balloon.mappings import most_huge_mappings, window_budget
from uffdballoon.balloon.nodes import GuestNodes, refuse_unknown_nodes
from uffdballoon.balloon.reclaimer import Reclaimer
from uffdballoon.balloon.survey import Survey
from uffdballoon.core.fault_loop import LoopOptions
from uffdballoon.core.keeper import Kept
from uffdballoon.core.yielding import Yielder
from uffdballoon.host.probes import max_map_count
from uffdballoon.host.procfs import read_mappings
from uffdballoon.host.uffd import query_features
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.origin import Origin
from uffdballoon.model.ram import Backing
from uffdballoon.model.sizes import format_size
from uffdballoon.observe.choice import Circumstances, choose
from uffdballoon.session.keeping import as_it_was_set, keep, ledger_memory
from uffdballoon.session.obtaining import borrow_a_thread, obtain
from uffdballoon.session.prerequisites import (
    needs_monitor,
    refuse_blind_harm,
    refuse_what_cannot_be,
)
from uffdballoon.session.vcpus import Vcpus
from uffdballoon.target.claim import Claim
from uffdballoon.target.process import Target
from uffdballoon.target.readiness import refuse_unless_ready
from uffdballoon.vmm.qemu.balloon_log import BalloonLog
from uffdballoon.vmm.qemu.discovery import discover
from uffdballoon.vmm.qemu.machine import Machine
from uffdballoon.vmm.qemu.naming import names_of
from uffdballoon.vmm.qemu.suitability import SHARING, gather, judge, refuse_unsuitable

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.core.keeper import Keeping
    from uffdballoon.host.uffd import Userfaultfd
    from uffdballoon.observe.observers import LogOfBalloon, Observer
    from uffdballoon.session.options import SessionOptions
    from uffdballoon.vmm.qemu.facts import MonitorFacts


class Attachment:
    """What a session consists of; close() lets it all go. Raises the errors of what it wires."""

    def __init__(self, options: SessionOptions, progress: Callable[[str], None]) -> None:
        self.asked = options
        self.options = options = as_it_was_set(options, progress)
        self._progress = progress
        self._keeper: Keeping | None = None
        self._leaves = False
        with contextlib.ExitStack() as undo:
            self.target = undo.enter_context(Target.open(options.pid))
            undo.enter_context(self.target.naming_its_end())
            undo.enter_context(Claim(self.target))
            self.origin = Origin(options.pid, names_of(self.target.cmdline).name)
            progress(f"process {options.pid}: {self.target.exe}")
            if options.held is None:
                refuse_unless_ready(options.pid)
            self.target.refuse_if_busy()
            refuse_what_cannot_be(options)
            facts = self._know_the_guest(undo)
            self._judge_the_guest()
            self.known = known = query_features()
            self.injector = undo.enter_context(borrow_a_thread(self.target, progress))
            self.observer = self._choose_observer()
            undo.callback(self.observer.close)
            if options.leaves_monitor:
                self._leave_monitor(facts)
            obtained = obtain(self.injector, self.layout.blocks, options, progress)
            uffd = undo.enter_context(obtained.uffd)
            self.uffd_method = obtained.method
            self.stopped_ns = obtained.stopped_ns
            self.memory = memory = ledger_memory(options, undo)
            self.enforcer = Enforcer(
                self.injector,
                self.layout.blocks,
                uffd,
                known=known,
                options=self._loop_options(),
                observer=self.observer,
                vcpus=sorted(self.vcpus.numbers),
                stop_budget_ns=options.stop_budget_ns,
                memory=memory,
                resumed=options.held is not None,
                missed=self.observer.missed or self.machine.missed,
                relay=self.machine.relay,
                zaps_at_once=obtained.zaps_at_once,
            )
            undo.callback(self._let_go)
            self.yielder = Yielder(self.enforcer.loop)
            undo.callback(self.yielder.close)
            self.machine.note_resets_in(memory)
            self._keeper = keep(options, lambda: self._kept(uffd, memory))
            self.reclaimer = Reclaimer(
                self.enforcer.passes,
                mode=options.reclaiming,
                rate_bytes_per_s=options.reclaim_rate_bytes_per_s,
            )
            self.survey = Survey(
                options.pid, self.enforcer.ledger, self.enforcer.loop, self.enforcer.passes
            )
            self.follower = Follower(
                self.enforcer,
                self.observer,
                [(s.hva_range, s.gpa // PAGE_BYTES) for s in self.layout.segments],
            )
            self.guard = FragmentationGuard(
                self.enforcer.loop,
                self.enforcer.ledger,
                options.fragmentation,
                self.machine,
            )
            terms = self.options.terms
            self.nodes = GuestNodes(options.pid, self.layout, self.enforcer.ledger, terms)
            self._tell_unseen(facts)
            for lack in self.enforcer.lacks:
                progress(lack)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Detach; the guest goes on, unenforced."""
        self._undo.close()

    def hold_to(self, options: SessionOptions) -> int:
        """Hold the guest to the policy and the terms of these from now on.

        Returns how many touches that were held go on by it.
        """
        new_policy = options.policy != self.options.policy
        went_on = self.enforcer.loop.set_policy(
            options.policy.rungs if new_policy else None, options.terms
        )
        self.options = options
        self.nodes.agree(options.terms)
        return went_on

    def leave_to_keeper(self) -> bool:
        """Have close() leave the traps to the keeper; False without one."""
        self._leaves = self._keeper is not None
        return self._leaves

    def _know_the_guest(self, undo: contextlib.ExitStack) -> MonitorFacts | None:
        """Find its RAM and its vCPUs, by the monitor where there is one."""
        options = self.options
        self.machine = Machine.connect(
            options.qmp_path,
            pid=options.pid,
            needed=needs_monitor(options),
            held=options.held,
            progress=self._progress,
        )
        undo.callback(self._close_machine)
        if self.machine.monitor is not None and not options.leaves_monitor:
            self._progress(
                "the monitor is held as long as this runs: QEMU serves one client at a time, "
                "and others wait (a second -qmp is for them)"
            )
        facts = self.machine.facts()
        self.layout = discover(options.pid, self.target.cmdline, facts)
        self.options = options = replace(options, terms=options.terms.within(self.layout.ram_bytes))
        refuse_unknown_nodes(self.layout, options.terms, options.fragmentation)
        self.vcpus = Vcpus(self.target, self.machine, facts.vcpu_tids if facts else None)
        self._progress(
            f"guest RAM: {format_size(self.layout.allocated_bytes)}, "
            f"gpa {self.layout.extent}, by {self.layout.source}"
        )
        for lack in self.layout.unknown:
            self._progress(f"not known: {lack}")
        return facts

    def _judge_the_guest(self) -> None:
        """Refuse what would hurt it or not hold, and tell what is not as one might expect."""
        options = self.options
        vcpus = self.vcpus.numbers
        stays = self.machine.relay is not None and not options.leaves_monitor
        refuse_blind_harm(options, sees_resets=stays, vcpus=vcpus)
        self.unsuitable = judge(gather(self.target, self.layout.blocks, self.machine.monitor))
        refuse_unsuitable(self.unsuitable, options.allowed, options.pid)
        self._shared_with = "; ".join(
            finding.sentence for finding in self.unsuitable if finding.name in SHARING
        )
        for finding in self.unsuitable:
            self._progress(f"does not hold: {finding.sentence}")
        if any(block.backing is Backing.HUGETLBFS for block in self.layout.blocks):
            self._progress(
                "left behind, for good: mappings of huge pages that windows cut, "
                f"at most {self._most_huge_mappings()} however often one attaches"
            )
        if not vcpus:
            self._progress(
                "not known: which threads are vCPUs, so every thread counts as the guest"
            )

    def _close_machine(self) -> None:
        self.machine.close()

    def _leave_monitor(self, facts: MonitorFacts | None) -> None:
        """Go on without it, with what it told: whose it is connects when there is need."""
        self.machine.close()
        self.machine = Machine(None, missed=self.machine.missed)
        self.vcpus = Vcpus(self.target, self.machine, facts.vcpu_tids if facts else None)

    def circumstances(self, options: SessionOptions) -> Circumstances:
        """Return what an observer has to serve under these options."""
        return Circumstances(
            pid=options.pid,
            blocks=self.layout.blocks,
            features=self.known,
            contract=options.terms.kind,
            has_device=self.machine.has_device,
            reports_free_pages=self.machine.reports_free_pages,
            segments=self.layout.segments,
            open_log=self._open_log if self._keeps_monitor else None,
            count_reported=options.terms.count_reported,
            kept_trace=options.held.trace if options.held else (),
            shared_with=self._shared_with,
        )

    @property
    def _keeps_monitor(self) -> bool:
        return self.machine.monitor is not None and not self.options.leaves_monitor

    def _open_log(self) -> LogOfBalloon:
        assert self.machine.monitor is not None
        return BalloonLog(
            self.machine.monitor,
            self.injector,
            trust_seccomp=self.options.trust_seccomp,
            progress=self._progress,
        )

    def _choose_observer(self) -> Observer:
        chosen = choose(self.options.observer, self.circumstances(self.options))
        by = f" by {chosen.observer.how}" if chosen.observer.how else ""
        self._progress(f"observer {chosen.observer.kind.value}{by}: {chosen.why}")
        return chosen.observer

    def _loop_options(self) -> LoopOptions:
        options = self.options
        return LoopOptions(
            terms=options.terms,
            rungs=options.policy.rungs,
            window_budget=self._window_budget(),
            huge_mappings=self._most_huge_mappings(),
            slackens=not options.always_trap,
            follow_cpu=options.follow_cpu,
            tell_begin=options.fragmentation is not None,
            memory_patience_ns=options.memory_patience_ns,
            reset_delay_ns=self.machine.reset_delay_ns,
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

    def _kept(self, uffd: Userfaultfd, memory: int) -> Kept:
        trace = self.observer.trace.fds() if self.observer.trace else ()
        return Kept(uffd.fileno(), memory, self.target.pidfd, trace, self.machine.share())

    def _let_go(self) -> None:
        self.enforcer.close()
        if self._keeper is not None:
            if not self._leaves:
                self._keeper.end()
            self._keeper.close()

    def _tell_unseen(self, facts: MonitorFacts | None) -> None:
        """Say what was in the balloon before anybody looked: nobody can tell which pages."""
        actual = facts.balloon_actual_bytes if facts else None
        if actual is not None and actual < self.layout.allocated_bytes:
            there = format_size(self.layout.allocated_bytes - actual)
            self._progress(
                f"not known: which pages make up the {there} "
                "that are in the balloon already; they are not enforced until they are given up "
                f"anew (uffdballoon set {self.target.pid} --balloon SIZE, out and in)"
            )
