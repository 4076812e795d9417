# SPDX-License-Identifier: GPL-2.0-or-later
"""Whenever a manager is killed, stopped or told to end, its guest goes on as it was."""

from __future__ import annotations

import collections
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from tests.support.moments import OWNED, SEED, Moment, bring_to, start_manager, take_back
from tests.support.resources import resources_of, userfaultfd_mappings
from uffdballoon.host.procfs import read_mappings
from uffdballoon.model.addresses import PAGE_BYTES

if TYPE_CHECKING:
    import random

    from uffdballoon.lab.microguest import PendingAnswer
    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU

_WAYS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
_PATIENCE_S = 10.0
_ALIVE_S = 1.0
"""At most, in a campaign: to be run alone. A machine that is busy otherwise has its patience."""
_STOPPED_S = 0.02


class Wounds:
    """A guest whose managers are ended one after the other, and what must not change in it."""

    def __init__(self, qemu: Qemu, chance: random.Random) -> None:
        self._qemu = qemu
        self._chance = chance
        self.done: collections.Counter[str] = collections.Counter()
        self.slowest_s = 0.0
        qemu.guest.fill(OWNED, SEED)
        self._checksum = qemu.guest.checksum(OWNED, stride_bytes=PAGE_BYTES)
        # Once undisturbed: QEMU maps what it needs for a monitor and a balloon.
        self.end_one(Moment.FOLLOW, signal.SIGTERM)
        self.end_one(Moment.DETACH, signal.SIGTERM)

    def end_one(self, moment: Moment, how: signal.Signals) -> None:
        """Attach, end the manager at a moment, and look what is left."""
        before = resources_of(self._qemu.pid)
        with start_manager(self._qemu, moment, self._chance) as manager:
            pending = bring_to(manager, self._qemu, moment, self._chance)
            manager.signal(how)
            if how is signal.SIGSTOP:
                time.sleep(self._chance.uniform(0, _STOPPED_S))
                manager.signal(signal.SIGCONT)
                manager.signal(signal.SIGTERM)
            code = manager.wait()
            ended = time.monotonic()
            self._check_the_end(code, how, manager.said)
            self._check_that_it_answers(pending)
            self.slowest_s = max(self.slowest_s, time.monotonic() - ended)
        take_back(self._qemu, moment)
        assert self._qemu.guest.checksum(OWNED, stride_bytes=PAGE_BYTES) == self._checksum
        self._check_that_nothing_is_left(before)
        self.done[f"{how.name} {moment.name.lower()}"] += 1

    @staticmethod
    def _check_the_end(code: int, how: signal.Signals, said: str) -> None:
        # Where it is told to end before it listens, the signal's own default ends it.
        allowed = {0, -signal.SIGKILL} if how is signal.SIGKILL else {0, -signal.SIGTERM}
        assert code in allowed, said
        assert "Traceback" not in said
        assert "unexpected" not in said

    def _check_that_it_answers(self, pending: PendingAnswer | None) -> None:
        if pending is not None:
            pending.wait(_PATIENCE_S)
        self._qemu.guest.ping(timeout_s=_PATIENCE_S)

    def _check_that_nothing_is_left(self, before: object) -> None:
        deadline = time.monotonic() + _PATIENCE_S  # QEMU closes its monitor's connection itself
        while resources_of(self._qemu.pid) != before:
            assert time.monotonic() < deadline, (before, resources_of(self._qemu.pid))
            time.sleep(0.005)
        assert userfaultfd_mappings(self._qemu.pid) == 0


def _campaign(qemu: Qemu, chance: random.Random, turns: int) -> Wounds:
    wounds = Wounds(qemu, chance)
    maps = len(read_mappings(qemu.pid))
    moments = list(Moment)
    for turn in range(turns):
        wounds.end_one(moments[turn % len(moments)], _WAYS[turn // len(moments) % len(_WAYS)])
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0
    # QEMU maps stacks and arenas of its own now and then, and never one a turn.
    assert len(read_mappings(qemu.pid)) < maps + 10 + turns // 20
    print(f"\n{turns} ends, {wounds.slowest_s:.3f} s to an answer at most: {dict(wounds.done)}")
    return wounds


def test_a_guest_outlives_its_managers(qemu: Qemu, chance: random.Random) -> None:
    _campaign(qemu, chance, 3 * len(Moment))


@pytest.mark.campaign
def test_a_guest_outlives_a_thousand_managers(qemu: Qemu, chance: random.Random) -> None:
    """By SIGKILL alone a thousand, under both accelerators together."""
    assert _campaign(qemu, chance, 1500).slowest_s <= _ALIVE_S
