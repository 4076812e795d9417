# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that is locked up in one way, or in all: followed, enforced, let go from outside."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from tests.support.resources import resources_of
from uffdballoon.errors import QmpError
from uffdballoon.lab.confinement import EVERYTHING, NOT_CONFINED, PRIVATE_DIRECTORY, Confinement
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.touch import Access, Action
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

BALLOON = GpaRange.of(64 << 20, 2 << 20)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0xC0FE
INNER_QMP = PRIVATE_DIRECTORY / "qmp"
_PATIENCE_S = 20.0

MEASURES = {
    "other-uid": Confinement(uid=65534),
    "no-capabilities": Confinement(no_capabilities=True),
    "no-new-privileges": Confinement(no_new_privileges=True),
    "seccomp-sandbox": NOT_CONFINED,
    "mount-namespace": Confinement(private_mounts=True),
    "pid-namespace": Confinement(pid_namespace=True),
    "network-namespace": Confinement(network_namespace=True),
    "user-namespace": Confinement(user_namespace=True),
    "memory-cgroup": Confinement(memory_limit_bytes=512 << 20),
    "everything": EVERYTHING,
}


def options_of(confinement: Confinement, accel: Accel = Accel.TCG) -> QemuOptions:
    return QemuOptions(
        accel=accel,
        memory=Memory(size_bytes=192 << 20),
        processors=2,
        sandbox=confinement in (NOT_CONFINED, EVERYTHING),
        confinement=confinement,
    )


def attach(qemu: Qemu, policy: str, path: Path | None = None) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid, qmp_path=str(path or qemu.qmp_path), policy=parse_policy(policy)
        )
    )


def enforce(qemu: Qemu) -> str:
    """Go through a whole attach; return how the userfaultfd was had."""
    qemu.guest.fill(OWNED, SEED)
    qemu.guest.ping()
    before = resources_of(qemu.pid)
    with attach(qemu, "zero-read,observe") as session:
        qemu.guest.balloon_inflate(BALLOON)
        session.settle()
        state = session.verify()
        assert state.ballooned_bytes == BALLOON.size_bytes
        assert state.disagreements == ()
        qemu.guest.touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        qemu.guest.touch_on_second(
            GpaRange.of(BALLOON.start + PAGE_BYTES, PAGE_BYTES), Access.WRITE
        )
        violations = [event for event in session.settle() if event.kind is EventKind.VIOLATION]
        assert [event.vcpu for event in violations] == [0, 1]
        assert [event.gpa for event in violations] == [BALLOON.start, BALLOON.start + PAGE_BYTES]
        tids = {str(event.tid) for event in violations}
        assert tids <= set(resources_of(qemu.pid).threads)
        qemu.guest.balloon_deflate(BALLOON)
        qemu.guest.fill(BALLOON, SEED)
        session.settle()
        assert session.status().touches.violations == 2
        assert session.status().ballooned_bytes == 0
        method = session.uffd_method
    qemu.guest.ping()
    deadline = time.monotonic() + _PATIENCE_S
    while resources_of(qemu.pid) != before:  # QEMU closes its end of the monitor's connection
        assert time.monotonic() < deadline, (resources_of(qemu.pid), before)
        time.sleep(0.01)
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0
    assert qemu.guest.verify(BALLOON, SEED).bad_lines == 0
    return method


@pytest.mark.parametrize("confinement", MEASURES.values(), ids=MEASURES.keys())
def test_a_confined_qemu_is_enforced(
    confinement: Confinement, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(options_of(confinement))
    method = enforce(qemu)
    with Target.open(qemu.pid) as target:
        privileged = target.confinement().capabilities and not confinement.user_namespace
    assert method == ("direct" if privileged else "passed")


@pytest.mark.needs_kvm
def test_vcpus_of_kvm_in_a_pid_namespace_are_told_apart(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    enforce(start_qemu(options_of(replace(EVERYTHING, uid=None), Accel.KVM)))


def test_the_confinement_is_what_it_says(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_qemu(options_of(EVERYTHING))
    with Target.open(qemu.pid) as target:
        confined = target.confinement()
    assert confined.uid == 65534
    assert confined.capabilities == 0
    assert confined.no_new_privs
    assert confined.seccomp
    assert confined.foreign_namespaces == ("mnt", "net", "pid")
    cgroups = Path(f"/proc/{qemu.pid}/cgroup").read_text()
    assert qemu.directory.name in cgroups
    told = qemu.monitor.execute("query-cpus-fast")
    assert not {str(cpu["thread-id"]) for cpu in told} & set(resources_of(qemu.pid).threads)


def test_a_monitor_in_another_mount_namespace_is_reached(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    listen = ("-qmp", f"unix:{INNER_QMP},server=on,wait=off")
    qemu = start_qemu(replace(options_of(EVERYTHING), extra=listen))
    assert not INNER_QMP.exists()
    with attach(qemu, "pause", INNER_QMP) as session:
        qemu.guest.balloon_inflate(BALLOON)
        session.settle()
        pending = qemu.guest.start_touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        events: list[EventKind] = []
        while EventKind.PAUSED not in events:
            events += [event.kind for event in session.settle()]
        assert qemu.monitor.execute("query-status")["status"] == "paused"
    qemu.monitor.execute("cont")
    pending.wait()


def test_a_monitor_that_is_nowhere_is_told_with_both_places(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(options_of(EVERYTHING))
    with pytest.raises(QmpError, match=f"/proc/{qemu.pid}/root{INNER_QMP}"):
        attach(qemu, "observe", INNER_QMP)
    qemu.guest.ping()


def test_process_1_of_a_pid_namespace_is_killed_by_the_rung(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(options_of(EVERYTHING))
    with attach(qemu, "zero-read,kill") as session:
        qemu.guest.balloon_inflate(BALLOON)
        session.settle()
        qemu.guest.start_touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        assert qemu.wait_for_exit()
        assert [event.action for event in session.drain_events()] == [Action.KILL]
