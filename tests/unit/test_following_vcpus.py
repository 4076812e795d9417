# SPDX-License-Identifier: GPL-2.0-or-later
"""vCPUs that come are known once QEMU has told, and nobody waits until it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from uffdballoon.session.parts import WatchingThreads
from uffdballoon.session.vcpus import Vcpus

if TYPE_CHECKING:
    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.model.job import Job
    from uffdballoon.target.process import Target
    from uffdballoon.vmm.qemu.machine import Machine


class _Guest:
    """A target, its machine and the fault loop, as far as threads go."""

    def __init__(self) -> None:
        self.threads = frozenset({10, 11})
        self.told: dict[int, int] | None = {11: 0}
        self.late = 0  # turns until QEMU answers
        self.loop_has: list[int] = []
        target = SimpleNamespace(tids=lambda: self.threads, seen_from_here=dict)
        machine = SimpleNamespace(asking_vcpus=self._asking, monitor=object())
        self.vcpus = Vcpus(cast("Target", target), cast("Machine", machine), {11: 0})
        loop: Any = SimpleNamespace(set_vcpus=self._set)
        self.part = WatchingThreads(self.vcpus, cast("FaultLoop", loop))

    def _set(self, tids: list[int]) -> None:
        self.loop_has = tids

    def _asking(self) -> Job[dict[int, int] | None]:
        for _ in range(self.late):
            yield 0.0
        return self.told


@pytest.fixture
def guest() -> _Guest:
    return _Guest()


def test_without_other_threads_nobody_is_asked(guest: _Guest) -> None:
    guest.told = {}
    assert guest.part.tick().due_s is None
    assert guest.loop_has == []


def test_a_new_vcpu_is_told_when_qemu_has_answered(guest: _Guest) -> None:
    guest.threads, guest.told, guest.late = frozenset({10, 11, 12}), {11: 0, 12: 1}, 2
    assert [guest.part.tick().due_s for _ in range(3)] == [0.0, 0.0, None]
    assert guest.loop_has == [11, 12]
    assert guest.vcpus.numbers == {11: 0, 12: 1}


def test_a_qemu_that_does_not_answer_is_asked_again_later(guest: _Guest) -> None:
    guest.threads, guest.told = frozenset({10, 11, 12}), None
    due_s = guest.part.tick().due_s
    assert due_s is not None
    assert due_s >= 1
    assert guest.vcpus.numbers == {11: 0}
    guest.told = {11: 0, 12: 1}
    guest.part.tick()  # the end of the first try
    guest.part.tick()
    assert guest.loop_has == [11, 12]


def test_what_fails_is_tried_anew(guest: _Guest) -> None:
    guest.threads = frozenset({10, 11, 12})

    def fail(_: object) -> None:
        raise OSError(5, "no")

    guest.vcpus._target.seen_from_here = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="no"):
        guest.part.tick()
    guest.vcpus._target.seen_from_here = dict  # type: ignore[method-assign, assignment]
    guest.part.tick()
    assert guest.loop_has == [11]
