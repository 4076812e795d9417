# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole of enforcement against a pure model: any history, on a real process.

The settings are the profile's: `model-quick` in every run, `model-campaign` by ``-m campaign``,
which makes 50,000 steps.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.balloon_model import PER_BLOCK, BalloonModel, Told
from tests.support.tenant import Tenant, build_tenant
from uffdballoon.balloon.enforcer import Enforcer
from uffdballoon.core.fault_loop import LoopOptions
from uffdballoon.host.process import resident
from uffdballoon.host.uffd import query_features
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, HvaRange
from uffdballoon.model.job import run_job
from uffdballoon.model.ladder import Rung, RungKind
from uffdballoon.model.terms import TOLD, ContractKind, Terms
from uffdballoon.model.touch import Access, Role
from uffdballoon.observe.observers import TraceObserver
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_userfaultfd,
    pytest.mark.needs_ptrace,
]

_BLOCKS = 4
_PAGES = _BLOCKS * PER_BLOCK
_OBSERVE = Rung(RungKind.OBSERVE)
_ZERO_READ = Rung(RungKind.ZERO_READ)
_WIDE_OPEN = Rung.throttle(1 << 50, 1 << 50)
_LADDERS = (
    (_OBSERVE,),
    (_ZERO_READ, _OBSERVE),
    (_ZERO_READ, _WIDE_OPEN, _OBSERVE),
    (_WIDE_OPEN,),
)
_TERMS = (
    TOLD,
    Terms(kind=ContractKind.CAP),
    *(
        Terms(
            kind=ContractKind.CAP,
            floor_bytes=floor * PAGE_BYTES,
            grace_bytes=grace * PAGE_BYTES,
        )
        for floor, grace in ((3, 0), (3, 2), (20, 5), (700, 1))
    ),
)
_ROLES = {
    ("vcpu", Access.READ): Role.VCPU,
    ("vcpu", Access.WRITE): Role.VCPU,
    ("host", Access.READ): Role.HOST_READER,
    ("host", Access.WRITE): Role.DEVICE_WRITER,
}
# Few enough to meet again, neighbours among them, and the edges of blocks.
_OFFSETS = (*range(10), 100, 255, 256, PER_BLOCK - 2, PER_BLOCK - 1)
_page = st.sampled_from([b * PER_BLOCK + o for b in range(_BLOCKS) for o in _OFFSETS])
_length = st.sampled_from([1, 1, 2, 3, 7, 64, PER_BLOCK, PER_BLOCK + 100])
_access = st.sampled_from(list(Access))
_who = st.sampled_from(["vcpu", "vcpu", "host"])
_value = st.integers(1, 1 << 40)
_terms = st.sampled_from(_TERMS)
_ladder = st.sampled_from(_LADDERS)


class _Attachment:
    """The parts of a session that concern memory, on the tenant."""

    def __init__(self, tenant: Tenant, terms: Terms, rungs: tuple[Rung, ...]) -> None:
        with contextlib.ExitStack() as undo:
            target = undo.enter_context(Target.open(tenant.pid, any_process=True))
            observer = TraceObserver(tenant.pid, [tenant.block])
            undo.callback(observer.close)
            injector = undo.enter_context(Injector(target))
            uffd = obtain_userfaultfd(injector).uffd
            undo.callback(uffd.close)
            self.enforcer = Enforcer(
                injector,
                [tenant.block],
                uffd,
                known=query_features(),
                options=LoopOptions(terms=terms, rungs=rungs, follow=False),
                observer=observer,
                vcpus=[tenant.vcpu_tid],
            )
            undo.callback(self.enforcer.close)
            self.loop = self.enforcer.loop
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()

    def settle(self) -> None:
        """Follow until there is nothing left to arm, to look at again or to let go."""
        while self.loop.follow() or self.enforcer.zap_again():
            time.sleep(0.002)
        self.loop.tidy()


class BalloonMachine(RuleBasedStateMachine):
    """Every rule is done to the model and to the tenant; then they are compared in full."""

    tenant_binary: Path
    steps_in_all = 0
    steps = 0

    @initialize(terms=_terms, rungs=_ladder)
    def begin(self, terms: Terms, rungs: tuple[Rung, ...]) -> None:
        self.model = BalloonModel(_BLOCKS)
        self.tenant = Tenant(self.tenant_binary, _BLOCKS)
        self.pagemap = os.open(f"/proc/{self.tenant.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self.attached: _Attachment | None = None
        self.attach(terms, rungs)

    def teardown(self) -> None:
        if hasattr(self, "tenant"):
            if self.attached is not None:
                self.attached.close()
            self.tenant.close()
            os.close(self.pagemap)

    def _span(self, pages: range) -> HvaRange:
        start = self.tenant.block.hva + pages.start * PAGE_BYTES
        return HvaRange.of(start, len(pages) * PAGE_BYTES)

    @precondition(lambda self: self.attached is None)
    @rule(terms=_terms, rungs=_ladder)
    def attach(self, terms: Terms, rungs: tuple[Rung, ...]) -> None:
        self.model.attach(terms, rungs)
        self.attached = _Attachment(self.tenant, terms, rungs)

    @precondition(lambda self: self.attached is not None and self.steps % 7 == 0)
    @rule()
    def detach(self) -> None:
        assert self.attached is not None
        self.model.detach()
        self.attached.close()
        self.attached = None

    @precondition(lambda self: self.attached is not None)
    @rule(first=_page, length=_length)
    def inflate(self, first: int, length: int) -> None:
        assert self.attached is not None
        pages = range(first, min(first + length, _PAGES))
        taken = [(self.tenant.block, self._span(pages))]
        done = run_job(self.attached.enforcer.inflate(taken))
        assert done.pages_bytes == self.model.inflate(pages) * PAGE_BYTES

    @precondition(lambda self: self.attached is not None)
    @rule(first=_page, length=_length)
    def deflate(self, first: int, length: int) -> None:
        assert self.attached is not None
        pages = range(first, min(first + length, _PAGES))
        done_bytes = self.attached.enforcer.deflate(self._span(pages))
        assert done_bytes == self.model.deflate(pages) * PAGE_BYTES

    @precondition(lambda self: self.attached is not None and self.steps % 5 == 0)
    @rule()
    def reset(self) -> None:
        assert self.attached is not None
        self.model.reset()
        self.attached.loop.reset()

    @rule(page=_page, access=_access, who=_who, value=_value)
    def touch(self, page: int, access: Access, who: str, value: int) -> None:
        self._touch(page, access, who, value)

    @rule(page=_page, length=st.integers(2, 40), access=_access, who=_who, value=_value)
    def walk(self, page: int, length: int, access: Access, who: str, value: int) -> None:
        for at in range(page, min(page + length, _PAGES)):
            self._touch(at, access, who, value + at)

    @rule(page=_page)
    def discard(self, page: int) -> None:
        self.tenant.discard(page)
        self.model.discard(page)

    @rule(page=_page)
    def take_back(self, page: int) -> None:
        self.tenant.take_back(page)
        self.model.take_back(page)

    @precondition(lambda self: self.steps % 11 == 0)  # a window is waited for, for 200 ms
    @rule(page=_page, access=_access, who=_who, value=_value)
    def discard_and_touch(self, page: int, access: Access, who: str, value: int) -> None:
        self.tenant.discard(page)
        read = self._touch_for_real(page, access, who, value)
        expected = self.model.discard_and_touch(page, access, _ROLES[who, access], value)
        assert read == expected

    @rule(block=st.integers(0, _BLOCKS - 1))
    def collapse(self, block: int) -> None:
        collapsed = self.tenant.collapse(block)
        assert not (collapsed and block in self.model.armed)
        if collapsed:
            self.model.collapsed(block)

    def _touch(self, page: int, access: Access, who: str, value: int) -> None:
        read = self._touch_for_real(page, access, who, value)
        assert read == self.model.touch(page, access, _ROLES[who, access], value)

    def _touch_for_real(self, page: int, access: Access, who: str, value: int) -> int:
        if access is Access.READ:
            return self.tenant.read(who, page)
        self.tenant.write(who, page, value)
        return value

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "tenant"):
            return
        self.steps += 1
        BalloonMachine.steps_in_all += 1
        if self.attached is not None:
            self.attached.settle()
            self.model.settle()
            self._counters_agree(self.attached)
            self._ledger_agrees(self.attached)
        self._memory_agrees()

    def _counters_agree(self, attached: _Attachment) -> None:
        now = self.model.now
        assert now is not None
        attached.loop.grace()  # a call on the loop: what came before is counted by now
        stats = attached.loop.stats()
        windows, armed = self.model.windows()
        assert (stats.windows, stats.armed_bytes) == (windows, armed * HUGE_BYTES)
        for name in (
            *("ordinary", "granted", "violations", "host_reads", "around_pages"),
            *("observed_inflated", "observed_deflated", "late", "late_reads"),
            *("failed", "gone", "retried", "exists", "slipped_writes", "together", "parked"),
            *("lost_records", "resyncs", "doubtful", "zapped_again", "events_dropped"),
            *("refused_discards", "reported_bytes"),
        ):
            assert getattr(stats, name) == now.counts[name], name
        assert {a: n for a, n in stats.actions.items() if n} == dict(now.actions)
        assert list(self._events(attached)) == now.told
        now.told.clear()

    def _events(self, attached: _Attachment) -> Iterator[Told]:
        while records := attached.loop.drain():
            for record in records:
                page = (record.span.start - self.tenant.block.hva) // PAGE_BYTES
                yield Told(page, record.access, record.role, record.verdict, record.action)

    def _ledger_agrees(self, attached: _Attachment) -> None:
        assert self.model.now is not None
        runs = attached.enforcer.ledger.runs(self.tenant.block.hva_range)
        assert self._pages_of(list(runs)) == self.model.now.contract.ballooned
        assert run_job(attached.enforcer.disagreeing()) == []

    def _memory_agrees(self) -> None:
        there = resident(self.pagemap, self.tenant.block.hva_range)
        assert self._pages_of(there) == self.model.held()
        for run in there:
            at = run.start - self.tenant.block.hva
            assert self.tenant.contents(run) == self.model.image[at : at + run.size_bytes]

    def _pages_of(self, runs: list[HvaRange]) -> set[int]:
        start = self.tenant.block.hva
        return {
            page
            for run in runs
            for page in range((run.start - start) // PAGE_BYTES, (run.end - start) // PAGE_BYTES)
        }


_COMMON = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)
settings.register_profile(
    "model-quick", _COMMON, max_examples=6, stateful_step_count=60, derandomize=True
)
settings.register_profile("model-campaign", _COMMON, max_examples=50, stateful_step_count=100)


@pytest.fixture(autouse=True, scope="module")
def _tenant(tmp_path_factory: pytest.TempPathFactory) -> None:
    BalloonMachine.tenant_binary = build_tenant(tmp_path_factory.mktemp("tenant"))


def test_any_history_ends_as_the_model_says() -> None:
    BalloonMachine.steps_in_all = 0
    run_state_machine_as_test(BalloonMachine, settings=settings.get_profile("model-quick"))
    assert BalloonMachine.steps_in_all > 200


@pytest.mark.campaign
def test_fifty_thousand_steps_end_as_the_model_says() -> None:
    BalloonMachine.steps_in_all = 0
    while BalloonMachine.steps_in_all < 50_000:
        run_state_machine_as_test(BalloonMachine, settings=settings.get_profile("model-campaign"))
