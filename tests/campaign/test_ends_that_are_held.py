# SPDX-License-Identifier: GPL-2.0-or-later
"""Whenever a manager is killed that is to be held, another goes on, or the keeper lets go."""

from __future__ import annotations

import collections
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.forked import ForkedManager, Phase
from tests.support.holding import ask, detach, is_kept, status, wait_until
from tests.support.marks import REAL_QEMU
from tests.support.moments import (
    DIRECT,
    OWN,
    OWNED,
    SEED,
    Moment,
    bring_to,
    start_manager,
    take_back,
)
from tests.support.resources import becomes, resources_of, userfaultfd_mappings
from uffdballoon.model.addresses import PAGE_BYTES

if TYPE_CHECKING:
    import random

    from tests.support.resources import Resources
    from uffdballoon.lab.microguest import PendingAnswer
    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU

_PATIENCE_S = 10.0
_ALL_TOUCHED = {Moment.TRAP, Moment.FREEZE}


class HeldWounds:
    """A guest whose managers are killed, one after the other, and what has to come of it."""

    def __init__(self, qemu: Qemu, chance: random.Random) -> None:
        self._qemu = qemu
        self._chance = chance
        self.done: collections.Counter[str] = collections.Counter()
        qemu.guest.fill(OWNED, SEED)
        self._checksum = qemu.guest.checksum(OWNED, stride_bytes=PAGE_BYTES)
        # Once undisturbed: QEMU maps what it needs for a monitor and a balloon.
        with start_manager(qemu, Moment.FOLLOW, chance) as manager:
            bring_to(manager, qemu, Moment.FOLLOW, chance)
            detach(manager)
        take_back(qemu, Moment.FOLLOW)

    def is_taken_over(self, moment: Moment) -> None:
        """Kill a manager, often the next one, too, on its way in; the last goes on and detaches."""
        before = resources_of(self._qemu.pid)
        pending = self._kill(moment, "30s")
        if self._chance.random() < 0.5:
            with self._next() as second:
                second.reach(self._chance.choice([Phase.ATTACH, Phase.SERVE]))
                self._end(second, self._chance.uniform(0, 0.03))
        with self._next() as last:
            assert last.reach(Phase.SERVE), last.said
            if pending is not None:
                pending.wait(_PATIENCE_S)
            if moment is Moment.FOLLOW:  # the trace went on all the time
                wait_until(lambda: status(last)["ballooned_bytes"] == OWN.size_bytes)
            state = status(last)
            if moment in _ALL_TOUCHED:
                assert state["ballooned_bytes"] == 0
            assert state["ballooned_bytes"] <= DIRECT.size_bytes
            assert ask(last, "verify")["disagreements"] == []
            detach(last)
        self._check_that_nothing_is_left(moment, before)
        self.done[f"{moment.name.lower()} taken over"] += 1

    def is_let_go(self, moment: Moment) -> None:
        """Kill a manager that nobody comes after."""
        before = resources_of(self._qemu.pid)
        pending = self._kill(moment, "50ms")
        wait_until(lambda: not is_kept(self._qemu))
        if pending is not None:
            pending.wait(_PATIENCE_S)
        self._check_that_nothing_is_left(moment, before)
        self.done[f"{moment.name.lower()} let go"] += 1

    def _kill(self, moment: Moment, hold_for: str) -> PendingAnswer | None:
        hold = ("--on-exit", "hold", "--hold-for", hold_for)
        with start_manager(self._qemu, moment, self._chance, *hold) as manager:
            pending = bring_to(manager, self._qemu, moment, self._chance)
            self._end(manager)
        return pending

    def _end(self, manager: ForkedManager, after_s: float = 0.0) -> None:
        time.sleep(after_s)
        manager.signal(signal.SIGKILL)
        assert manager.wait() in {0, -signal.SIGKILL}, manager.said
        assert "Traceback" not in manager.said

    def _next(self) -> ForkedManager:
        return start_manager(self._qemu, Moment.TRAP, self._chance, "--on-exit", "hold")

    def _check_that_nothing_is_left(self, moment: Moment, before: Resources) -> None:
        self._qemu.guest.ping(timeout_s=_PATIENCE_S)
        take_back(self._qemu, moment)
        assert self._qemu.guest.checksum(OWNED, stride_bytes=PAGE_BYTES) == self._checksum
        assert not is_kept(self._qemu)
        assert userfaultfd_mappings(self._qemu.pid) == 0
        assert becomes(self._qemu.pid, before)


def _campaign(qemu: Qemu, chance: random.Random, turns: int) -> None:
    wounds = HeldWounds(qemu, chance)
    for _ in range(turns):
        for moment in Moment:
            wounds.is_taken_over(moment)
            wounds.is_let_go(moment)
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0
    print(f"\n{2 * turns * len(Moment)} kills: {dict(wounds.done)}")


def test_what_a_killed_manager_leaves_is_taken_over_or_let_go(
    qemu: Qemu, chance: random.Random
) -> None:
    _campaign(qemu, chance, 1)


@pytest.mark.campaign
def test_hundreds_of_managers_are_taken_over_or_let_go(qemu: Qemu, chance: random.Random) -> None:
    _campaign(qemu, chance, 25)
