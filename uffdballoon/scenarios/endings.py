# SPDX-License-Identifier: GPL-2.0-or-later
"""A manager that dies in the middle of its work, with and without a keeper."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from uffdballoon.daemon import client
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.errors import ControlError, LabError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.granule import Granule
from uffdballoon.model.records.changes import ChangeReport
from uffdballoon.model.touch import Access
from uffdballoon.scenarios.stage import BALLOON, pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.scenarios.stage import Stage

_PATIENCE_S = 30.0
_WITHIN_S = 1.0
_COUNT = 16


def manager_dies(stage: Stage) -> None:
    """Kill the manager while its guest is held, with release and with hold."""
    qemu = stage.start()
    _released(stage, qemu)
    _held(stage, qemu)
    stage.check_owned(qemu.guest)


def _released(stage: Stage, qemu: Qemu) -> None:
    with _manager(stage, qemu, "--policy", "freeze") as manager:
        pending = qemu.guest.start_touch(pages(0, _COUNT), Access.WRITE)
        stage.promise("the guest is held at its first touch", holds=not pending.is_there(0.1))
        manager.kill()
        stage.host("killed the manager")
        stage.promise(
            "release: within a second the guest goes on, unenforced",
            holds=pending.is_there(_WITHIN_S),
        )
        pending.wait()


def _held(stage: Stage, qemu: Qemu) -> None:
    hold = ("--observer", "direct", "--on-exit", "hold")
    with _manager(stage, qemu, *hold, "--policy", "freeze") as manager:
        pending = qemu.guest.start_touch(pages(0, _COUNT), Access.WRITE)
        stage.promise("the guest is held at its first touch", holds=not pending.is_there(0.1))
        manager.kill()
        manager.wait()
        stage.host("killed the manager")
        stage.promise("hold: the guest waits at its touch", holds=not pending.is_there(0.2))
    with _manager(stage, qemu, *hold, "--policy", "observe", inflates=False):
        pending.wait()
        state = client.status(qemu.pid)
        stage.host(f"another manager took over; {state.touches.violations} violations")
        stage.promise(
            "hold: it judges the touch that the dead one had held, and all after it, once each",
            holds=state.touches.violations == _COUNT,
        )
        stage.promise(
            "hold: its ledger is that of the dead one",
            holds=state.ballooned_bytes == BALLOON.size_bytes - _COUNT * PAGE_BYTES,
        )
        client.detach(qemu.pid)
    qemu.guest.touch(pages(_COUNT, 1), Access.WRITE)
    stage.promise("hold: detach lets go", holds=True)


@contextlib.contextmanager
def _manager(
    stage: Stage, qemu: Qemu, *arguments: str, inflates: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `uffdballoon attach` as a process of its own, and have it take the balloon."""
    monitor = ("--qmp", str(qemu.qmp_path))
    command = [sys.executable, "-m", "uffdballoon", "attach", str(qemu.pid), *monitor, *arguments]
    manager = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_answers(qemu.pid, manager)
        stage.host(f"process {manager.pid} is the manager: attach PID {' '.join(arguments)}")
        if inflates:
            span = {"gpa": BALLOON.start, "size": BALLOON.size_bytes}
            how = {"granule": Granule.SMALL.value, "guest_agreed": True}
            client.request(qemu.pid, "inflate", ChangeReport, **span, **how)
        yield manager
    finally:
        manager.kill()
        manager.wait()
        socket_path(qemu.pid).unlink(missing_ok=True)


def _wait_until_it_answers(pid: int, manager: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            client.status(pid)
        except ControlError as error:
            if manager.poll() is not None or time.monotonic() > deadline:
                raise LabError("the manager does not come up", why=error.why) from error
            time.sleep(0.02)
        else:
            return
