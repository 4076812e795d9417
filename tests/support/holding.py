# SPDX-License-Identifier: GPL-2.0-or-later
"""Managers that leave their traps behind when they end, and what holds these meanwhile."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from tests.support.forked import ForkedManager, Phase
from tests.support.moments import OWNED, SEED
from tests.support.resources import becomes, userfaultfd_mappings
from uffdballoon.daemon.runtime import keeper_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.resources import Resources
    from uffdballoon.lab.qemu import Qemu

PATIENCE_S = 20.0
HOLD = ("--on-exit", "hold")
HOLD_DIRECT = (*HOLD, "--observer", "direct", "--qmp", "none")


def serve(qemu: Qemu, *arguments: object) -> ForkedManager:
    """Attach, and wait until it serves."""
    manager = ForkedManager(qemu.pid, *arguments)
    assert manager.reach(Phase.SERVE), manager.said
    return manager


def ask(manager: ForkedManager, verb: str) -> dict[str, Any]:
    with manager.ask(verb) as connection, connection.makefile("rb") as lines:
        answer: dict[str, Any] = json.loads(lines.readline())["result"]
    return answer


def status(manager: ForkedManager) -> dict[str, Any]:
    return ask(manager, "status")


def end(manager: ForkedManager, number: signal.Signals = signal.SIGKILL) -> None:
    manager.signal(number)
    manager.wait()


def is_kept(qemu: Qemu) -> bool:
    """Tell whether a keeper lives; it answers nobody while a manager does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(keeper_path(qemu.pid)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def detach(manager: ForkedManager) -> None:
    manager.ask("detach").close()
    assert manager.wait() == 0, manager.said


def check_that_all_is_let_go(qemu: Qemu, before: Resources) -> None:
    assert not is_kept(qemu)
    assert userfaultfd_mappings(qemu.pid) == 0
    assert becomes(qemu.pid, before)
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0
