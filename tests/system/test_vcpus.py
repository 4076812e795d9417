# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is a vCPU without a monitor, and what is refused where nobody can tell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Command
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.vcpus import find_vcpus

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

BALLOON = GpaRange.of(64 << 20, 4 << 20)
SPAN = ("--gpa", hex(BALLOON.start), "--size", BALLOON.size_bytes, "--guest-agreed")
RAM = Memory(size_bytes=192 << 20)
_PATIENCE_S = 30.0


def told_by_monitor(qemu: Qemu) -> dict[int, int]:
    return {cpu["thread-id"]: cpu["cpu-index"] for cpu in qemu.monitor.execute("query-cpus-fast")}


@pytest.mark.needs_kvm
@pytest.mark.parametrize("processors", [1, 2])
def test_kvms_are_told_without_names_and_without_a_monitor(
    processors: int, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.KVM, memory=RAM, processors=processors))
    with Target.open(qemu.pid) as target:
        found = find_vcpus(target)
        assert found == told_by_monitor(qemu)
        assert len(found) == processors
        assert find_vcpus(target, found, patience_s=0) == found


@pytest.mark.needs_kvm
def test_one_that_is_plugged_in_is_taken_up(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    options = QemuOptions(accel=Accel.KVM, memory=RAM, extra=("-smp", "1,maxcpus=2"))
    qemu = start_qemu(options)
    with Target.open(qemu.pid) as target:
        found = find_vcpus(target)
        (slot,) = [
            cpu for cpu in qemu.monitor.execute("query-hotpluggable-cpus") if "qom-path" not in cpu
        ]
        qemu.monitor.execute("device_add", driver=slot["type"], id="late", **slot["props"])
        both = find_vcpus(target, found)
        assert both == told_by_monitor(qemu)
        assert len(both) == 2


@pytest.mark.parametrize(
    ("named", "threads", "count"), [(True, "multi", 2), (True, "single", 1), (False, "multi", 0)]
)
def test_tcgs_are_told_by_their_names_alone(
    *, named: bool, threads: str, count: int, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(
        QemuOptions(memory=RAM, processors=2, name_threads=named, tcg_threads=threads)  # type: ignore[arg-type] # one of its words
    )
    with Target.open(qemu.pid) as target:
        found = find_vcpus(target)
        assert len(found) == count
        assert set(found) <= set(told_by_monitor(qemu))


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--policy", policy) for policy in ("zero-read,kill", "freeze", "freeze=1s,observe")),
        ("--policy", "poison"),
        ("--policy", "zero-read,throttle=10/s"),
        ("--contract", "cap", "--floor", "1M", "--boot-grace", "10s"),
        ("--contract", "cap", "--floor", "1M", "--boot-grace-bytes", "1M"),
    ],
)
def test_what_can_hurt_an_honest_guest_is_not_taken_without_a_monitor(
    arguments: tuple[str, ...], start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(QemuOptions(memory=RAM))
    command = Command()
    done = command.run("attach", qemu.pid, *arguments, "--qmp", "none")
    assert done.returncode == 2, done.stderr
    assert "--without-monitor" in done.stderr
    assert "--qmp" in done.stderr
    with command.attached(qemu.pid, *arguments, "--without-monitor"):
        pass
    with command.attached(qemu.pid, *arguments, "--qmp", qemu.qmp_path):
        pass
    qemu.guest.ping()


def test_what_lets_a_guest_be_is_taken(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_qemu(QemuOptions(memory=RAM))
    for policy in ("observe", "zero-read,observe", "throttle=10/s,observe"):
        with Command().attached(qemu.pid, "--policy", policy, "--qmp", "none"):
            pass


@pytest.mark.needs_kvm
def test_a_migration_is_not_taken_for_the_guest(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    """By the operator's word `kill` goes without a monitor: it is for vCPUs alone."""
    qemu = start_qemu(QemuOptions(accel=Accel.KVM, memory=RAM))
    command = Command()
    policy = ("--policy", "kill", "--without-monitor")
    with command.attached(qemu.pid, *policy) as manager:
        assert command.run("inflate", qemu.pid, *SPAN).returncode == 0
        qemu.monitor.execute("migrate", uri="exec:cat > /dev/null")
        deadline = time.monotonic() + _PATIENCE_S
        while qemu.monitor.execute("query-migrate").get("status") != "completed":
            assert time.monotonic() < deadline, "the migration does not end"
            time.sleep(0.02)
        qemu.monitor.execute("cont")
        qemu.guest.start_touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        assert qemu.wait_for_exit()
        assert manager.wait(_PATIENCE_S) == 1


@pytest.mark.needs_kvm
def test_an_attach_without_a_monitor_takes_up_what_is_plugged_in(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    options = QemuOptions(accel=Accel.KVM, memory=RAM, extra=("-smp", "1,maxcpus=2"))
    qemu = start_qemu(options)
    with Session(SessionOptions(pid=qemu.pid)) as session:
        assert session.vcpus == told_by_monitor(qemu)
        (slot,) = [
            cpu for cpu in qemu.monitor.execute("query-hotpluggable-cpus") if "qom-path" not in cpu
        ]
        qemu.monitor.execute("device_add", driver=slot["type"], id="late", **slot["props"])
        deadline = time.monotonic() + _PATIENCE_S
        while len(session.vcpus) < 2:  # its thread shows what it does once it has a CPU
            assert time.monotonic() < deadline
            session.keep_up()
        assert session.vcpus == told_by_monitor(qemu)
