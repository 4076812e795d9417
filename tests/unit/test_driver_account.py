# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said where the driver's count, what it was asked for and the ledger differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.records.balloon import DriverProgress, ProgressState
from uffdballoon.session.driver import Driver
from uffdballoon.vmm.qemu.suitability import Finding

RAM_BYTES = 1 << 30
PINNED = Finding("vfio", "a VFIO device has the guest's memory pinned", refuses=True)
LOCKED = Finding("locked", "memory is locked", refuses=False)


class PlayedMachine:
    """A driver that has given up a half, of the three quarters that it was asked for."""

    has_device = True
    state = ProgressState.MOVING
    why = ""

    def actual_bytes(self) -> int:
        return RAM_BYTES // 2

    def counted_change_bytes(self) -> int:
        return 0

    def ask_balloon(self, target_bytes: int, *_: object) -> DriverProgress:
        return DriverProgress(
            target_bytes=target_bytes,
            before_bytes=RAM_BYTES,
            actual_bytes=self.actual_bytes(),
            state=self.state,
            why=self.why,
        )


def driver(
    *, findings: tuple[Finding, ...] = (), yielded: bool = False, **machine: object
) -> Driver:
    played = PlayedMachine()
    for name, value in machine.items():
        setattr(played, name, value)
    attached: Any = SimpleNamespace(
        machine=played,
        layout=SimpleNamespace(allocated_bytes=RAM_BYTES),
        enforcer=SimpleNamespace(
            ledger=SimpleNamespace(ballooned_bytes=0),
            loop=SimpleNamespace(stats=lambda: SimpleNamespace(reported_pages=0, pieces=0)),
        ),
        guard=SimpleNamespace(obstacle=lambda: "", first_step=lambda: None, go_on=lambda: None),
        nodes=SimpleNamespace(ballooned=dict),
        observer=SimpleNamespace(kind=ObserverKind.TRACE),
        yielder=SimpleNamespace(is_yielded=yielded),
        unsuitable=findings,
    )
    return Driver(attached)


def test_nothing_asked_for_and_all_known_needs_no_reason() -> None:
    account = driver(findings=(LOCKED,)).account(RAM_BYTES // 2)
    assert (account.asked_bytes, account.unaccounted_bytes, account.why) == (None, 0, "")


def test_a_driver_on_its_way_is_told_and_one_that_stalls_with_its_reason() -> None:
    moving = driver()
    moving.ask(RAM_BYTES // 4)
    account = moving.account(RAM_BYTES // 2)
    assert (account.asked_bytes, account.why) == (
        RAM_BYTES // 4,
        "the guest's driver is on its way",
    )
    stalled = driver(state=ProgressState.STALLED, why="the guest is out of memory")
    stalled.ask(RAM_BYTES // 4)
    assert stalled.account(RAM_BYTES // 2).why == "the guest is out of memory"


@pytest.mark.parametrize(
    ("hindered", "said"),
    [
        ({"findings": (LOCKED, PINNED)}, "memory others use (vfio)"),
        ({"yielded": True}, "during a background snapshot or a postcopy migration"),
    ],
)
def test_a_qemu_that_discards_nothing_is_told_by_set_and_status(
    hindered: dict[str, Any], said: str
) -> None:
    hampered = driver(**hindered)
    asked = hampered.ask(RAM_BYTES // 2)
    assert asked.why.startswith("QEMU discards nothing")
    assert said in asked.why
    account = hampered.account(0)
    assert account.unaccounted_bytes == RAM_BYTES // 2
    assert account.why == asked.why


def test_what_was_there_before_is_told_apart() -> None:
    assert "before anybody looked" in driver().account(0).why
