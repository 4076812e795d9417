# SPDX-License-Identifier: GPL-2.0-or-later
"""Whenever a target ends or is stopped, its manager ends by itself, or goes on, and says so."""

from __future__ import annotations

import collections
import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from tests.support.moments import OWNED, SEED, Moment, bring_to, start_manager, take_back
from tests.support.resources import userfaultfd_mappings
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.support.forked import ForkedManager

pytestmark = REAL_QEMU

_MEMORY = Memory(size_bytes=64 << 20)
_STOPPED_S = 0.05
_PATIENCE_S = 10.0


def _by_signal(number: signal.Signals) -> Callable[[Qemu], None]:
    return lambda qemu: qemu.send_signal(number)


def _by_quitting(qemu: Qemu) -> None:
    with contextlib.suppress(Exception):  # its answer may be lost in its end
        qemu.monitor.execute("quit")


_ENDS: dict[str, Callable[[Qemu], None]] = {
    "SIGKILL": _by_signal(signal.SIGKILL),
    "SIGSEGV": _by_signal(signal.SIGSEGV),
    "SIGTERM": _by_signal(signal.SIGTERM),
    "quit": _by_quitting,
}
_ORDERLY = ("SIGTERM", "quit")


def _check_the_end(manager: ForkedManager, target_pid: int) -> None:
    code, said = manager.wait(), manager.said
    assert "Traceback" not in said, said
    assert "unexpected" not in said, said
    if code == 0:
        assert "detached from" in said, said  # it had let go before
        return
    assert code == 1, said
    # It may have been gone before it was pinned.
    assert f"process {target_pid} ended" in said or f"there is no process {target_pid}" in said, (
        said
    )


def _end_targets(accel: Accel, chance: random.Random, turns: int) -> None:
    done: collections.Counter[str] = collections.Counter()
    slowest_s = 0.0
    moments, ends = list(Moment), list(_ENDS)
    for turn in range(turns):
        moment, end = moments[turn % len(moments)], ends[turn // len(moments) % len(ends)]
        if turn < len(ends):
            end = ends[turn]  # a short walk has them all, too
        if moment is Moment.FREEZE and end in _ORDERLY:
            end = "SIGKILL"  # QEMU waits for its vCPU, which is held for good
        with (
            Qemu(QemuOptions(accel=accel, memory=_MEMORY)) as qemu,
            start_manager(qemu, moment, chance) as manager,
        ):
            bring_to(manager, qemu, moment, chance)
            _ENDS[end](qemu)
            qemu.wait_for_exit()
            ended = time.monotonic()
            _check_the_end(manager, qemu.pid)
            slowest_s = max(slowest_s, time.monotonic() - ended)
        done[f"{end} {moment.name.lower()}"] += 1
    print(f"\n{turns} ends, {slowest_s:.3f} s to the manager's at most: {dict(done)}")


def test_a_manager_ends_with_its_target(chance: random.Random) -> None:
    _end_targets(Accel.TCG, chance, len(Moment))


@pytest.mark.campaign
@pytest.mark.needs_kvm
def test_managers_end_with_three_hundred_targets(chance: random.Random) -> None:
    _end_targets(Accel.TCG, chance, 320)
    _end_targets(Accel.KVM, chance, 32)


def _stop_targets(accel: Accel, chance: random.Random, turns: int) -> None:
    moments = list(Moment)
    with Qemu(QemuOptions(accel=accel, memory=_MEMORY)) as qemu:
        qemu.guest.fill(OWNED, SEED)
        checksum = qemu.guest.checksum(OWNED, stride_bytes=PAGE_BYTES)
        for turn in range(turns):
            moment = moments[turn % len(moments)]
            with start_manager(qemu, moment, chance) as manager:
                pending = bring_to(manager, qemu, moment, chance)
                qemu.send_signal(signal.SIGSTOP)
                time.sleep(chance.uniform(0, _STOPPED_S))
                qemu.send_signal(signal.SIGCONT)
                manager.signal(signal.SIGTERM)
                assert manager.wait() in {0, -signal.SIGTERM}, manager.said
                assert "Traceback" not in manager.said
            if pending is not None:
                pending.wait(_PATIENCE_S)
            qemu.guest.ping(timeout_s=_PATIENCE_S)
            take_back(qemu, moment)
            assert qemu.guest.checksum(OWNED, stride_bytes=PAGE_BYTES) == checksum
            assert userfaultfd_mappings(qemu.pid) == 0


def test_a_target_that_was_stopped_goes_on(accel: Accel, chance: random.Random) -> None:
    _stop_targets(accel, chance, len(Moment))


@pytest.mark.campaign
def test_targets_that_were_stopped_go_on(accel: Accel, chance: random.Random) -> None:
    _stop_targets(accel, chance, 200)
