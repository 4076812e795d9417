# SPDX-License-Identifier: GPL-2.0-or-later
"""Whenever a manager is killed, the next one gets in step with the monitor it spoke with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.holding import HOLD, detach, end, serve, status, wait_until
from tests.support.marks import REAL_QEMU
from tests.support.moments import OWN, OWNED, SEED
from tests.support.resources import userfaultfd_mappings
from uffdballoon.model.addresses import PAGE_BYTES

if TYPE_CHECKING:
    import random

    from tests.support.forked import ForkedManager
    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU


def _wait_until_ballooned(manager: ForkedManager, size_bytes: int) -> None:
    wait_until(lambda: status(manager)["ballooned_bytes"] == size_bytes)


def _kill_amid_traffic(qemu: Qemu, chance: random.Random, rounds: int) -> None:
    """Kill managers of which each goes on with a monitor that just spoke, and is asked things."""
    arguments = (*HOLD, "--observer", "trace", "--qmp", qemu.qmp_path)
    qemu.guest.fill(OWNED, SEED)
    is_given = False
    manager = serve(qemu, *arguments)
    for _ in range(rounds):
        asked = [manager.ask("status") for _ in range(chance.randrange(4))]
        doing = qemu.guest.start(
            f"balloon {'deflate' if is_given else 'inflate'} "
            f"{OWN.start:x} {OWN.size_bytes // PAGE_BYTES:x} {PAGE_BYTES:x}"
        )
        is_given = not is_given
        if chance.random() < 0.5:
            qemu.monitor.execute("stop")
            qemu.monitor.execute("cont")
        time.sleep(chance.uniform(0, 0.03))
        with manager:
            end(manager)
        for connection in asked:
            connection.close()
        doing.wait()
        manager = serve(qemu, *arguments)
        assert "connection to the monitor taken over" in manager.said
        given_bytes = OWN.size_bytes if is_given else 0
        _wait_until_ballooned(manager, given_bytes)
        state = status(manager)
        assert state["balloon"]["unaccounted_bytes"] == 0
        assert state["touches"]["violations"] == 0
        assert state["observed"]["doubtful_touches"] == 0
    with manager:
        detach(manager)
    if is_given:
        qemu.guest.balloon_deflate(OWN)
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0
    assert userfaultfd_mappings(qemu.pid) == 0
    print(f"\n{rounds} kills amid traffic, each taken over")


def test_each_manager_gets_in_step_with_a_monitor_that_speaks(
    qemu: Qemu, chance: random.Random
) -> None:
    _kill_amid_traffic(qemu, chance, 6)


@pytest.mark.campaign
def test_a_hundred_managers_get_in_step(qemu: Qemu, chance: random.Random) -> None:
    _kill_amid_traffic(qemu, chance, 100)
