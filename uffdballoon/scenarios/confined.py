# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that is locked up as far as a host can lock one up, enforced from outside."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.lab.confinement import EVERYTHING
from uffdballoon.lab.qemu import Accel
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.touch import Access
from uffdballoon.scenarios.stage import BALLOON, pages

if TYPE_CHECKING:
    from uffdballoon.scenarios.stage import Stage

_COUNT = 64
_PATIENCE_S = 10.0


def confined_qemu(stage: Stage) -> None:
    """Enforce a QEMU without privileges, in namespaces and a cgroup of its own."""
    # /dev/kvm is often root's alone: there QEMU keeps its uid, and no capability all the same.
    confinement = EVERYTHING if stage.accel is Accel.TCG else replace(EVERYTHING, uid=None)
    qemu = stage.start(processors=2, confinement=confinement)
    stage.host(
        "it has no capability, no_new_privs, a seccomp filter, mount, pid and network namespaces "
        "of its own, and a memory cgroup"
    )
    before = _fds(qemu.pid)
    with stage.attach(qemu, "zero-read,freeze") as session:
        stage.promise(
            "a userfaultfd is passed to who may not make one",
            holds=session.uffd_method == "passed",
        )
        qemu.guest.balloon_inflate(BALLOON)
        stage.settle(session)
        state = session.verify()
        stage.promise(
            "what its guest gives up is followed from outside",
            holds=state.ballooned_bytes == BALLOON.size_bytes and not state.disagreements,
        )
        qemu.guest.touch(pages(0, _COUNT), Access.READ)
        qemu.guest.start_on_second(pages(0, 1), Access.WRITE)
        stage.wait_for(session, "a frozen vCPU", lambda: bool(session.held()))
        (held,) = session.held()
        told = [event.vcpu for event in stage.events if event.kind is EventKind.VIOLATION]
        stage.host(f"vCPU {held.vcpu} is frozen; we know its thread as {held.tid}")
        stage.promise(
            "each touch is told with its vCPU, which has another thread id in there",
            holds=told == [0] * _COUNT + [1]
            and held.vcpu == 1
            and Path(f"/proc/{qemu.pid}/task/{held.tid}").exists(),
        )
        session.release(held.tid)
        qemu.guest.wait_for_second()
        granted = BALLOON.size_bytes - session.status().ballooned_bytes
        stage.promise("release lets it go on, with that one page", holds=granted == PAGE_BYTES)
    stage.promise("no fd is left in the target", holds=_becomes(before, qemu.pid))
    stage.check_owned(qemu.guest)


def _fds(pid: int) -> list[str]:
    return sorted(entry.name for entry in Path(f"/proc/{pid}/fd").iterdir())


def _becomes(fds: list[str], pid: int) -> bool:
    """Wait until QEMU, too, has closed the connection to its monitor."""
    deadline = time.monotonic() + _PATIENCE_S
    while _fds(pid) != fds:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
