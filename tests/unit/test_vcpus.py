# SPDX-License-Identifier: GPL-2.0-or-later
"""What the names and the states of threads say of who is a vCPU."""

from __future__ import annotations

import pytest

from uffdballoon.target.process import Thread
from uffdballoon.vmm.qemu.vcpus import ThreadState, Watch, parse_state, vcpu_fds, vcpus_by_name

MAIN = 100
FDS = {9: 0, 11: 1}
IN_POLL = ThreadState(
    "271 0x557d25a60030 0x4 0x7ffd 0x0 0x8 0x0 0x7ffd 0x7f3b", is_worker=False, guest_time=0
)
ON_A_CPU = ThreadState("running", is_worker=False, guest_time=0)
WORKER = ThreadState("16 0x9 0xae80 0x0 0x0 0x0 0x0 0x0 0x0", is_worker=True, guest_time=0)


def in_guest(fd: int) -> ThreadState:
    return ThreadState(f"16 {fd:#x} 0xae80 0x0 0x0 0x55aa 0x55a9", is_worker=False, guest_time=0)


def conclude(*samples: dict[int, ThreadState]) -> dict[int, int]:
    watch = Watch(FDS, MAIN)
    for sample in samples:
        watch.see(sample)
    return watch.conclude(samples[-1])


@pytest.mark.parametrize(
    ("name", "number"),
    [("CPU 0/KVM", 0), ("CPU 12/TCG", 12), ("ALL CPUs/TCG", 0), ("vhost-4711", None)]
    + [(name, None) for name in ("qemu-system-x86", "CPU 0/KV", "IO iothread1", "CPU x/KVM")],
)
def test_qemus_names_of_threads(name: str, number: int | None) -> None:
    assert vcpus_by_name([Thread(7, name)]) == ({} if number is None else {7: number})


def test_fds_that_are_vcpus() -> None:
    links = {3: "/dev/kvm", 8: "anon_inode:kvm-vm", 9: "anon_inode:kvm-vcpu:0"}
    assert vcpu_fds(links | {10: "anon_inode:kvm-vcpu-stats:1"}) == {9: 0}


def test_who_runs_a_vcpu_is_one() -> None:
    assert conclude({MAIN: IN_POLL, 101: in_guest(9), 102: in_guest(11)}) == {101: 0, 102: 1}


def test_a_vcpu_is_seen_in_one_of_several_samples() -> None:
    states = {MAIN: IN_POLL, 101: in_guest(9), 102: IN_POLL}
    assert conclude(states, states | {101: IN_POLL, 102: in_guest(11)}) == {101: 0, 102: 1}


def test_a_worker_that_a_vcpu_made_is_none() -> None:
    assert conclude({MAIN: IN_POLL, 101: IN_POLL, 102: in_guest(11), 103: WORKER}) == {}


def test_who_never_rests_is_the_one_that_is_lacking() -> None:
    states = {MAIN: ON_A_CPU, 101: ON_A_CPU, 102: in_guest(11), 103: WORKER}
    assert conclude(states, states) == {101: 0, 102: 1}
    assert conclude(states | {104: ON_A_CPU}) == {}, "it may be either"


def test_all_are_seen_whoever_else_is_on_a_cpu() -> None:
    states = {MAIN: IN_POLL, 101: in_guest(9), 102: in_guest(11), 104: ON_A_CPU}
    assert conclude(states) == {101: 0, 102: 1}


def test_the_time_in_a_guest_tells_it_as_well() -> None:
    busy = ThreadState("running", is_worker=False, guest_time=7)
    was_in_poll = {101: IN_POLL, 102: in_guest(11)}
    assert conclude(was_in_poll, was_in_poll | {101: busy}) == {101: 0, 102: 1}


def test_half_of_them_is_nothing() -> None:
    assert conclude({MAIN: IN_POLL, 101: in_guest(9), 102: IN_POLL}) == {}


def test_states_are_read_behind_a_name_of_any_shape() -> None:
    fields = ["S", "1", "1", "1", "0", "-1", str(0x4000), *["0"] * 33, "5", "0"]
    stat = f"7 (a) b) {' '.join(fields)}\n"
    assert parse_state("running\n", stat) == ThreadState("running", is_worker=True, guest_time=5)
    with pytest.raises(IndexError):
        parse_state("", "")


@pytest.mark.parametrize(
    ("syscall", "state", "is_worker", "expected"),
    [
        ("running", "R", False, True),
        ("16 0xb 0xae80 0x0", "D", False, True),
        ("7 0x0 0x0", "S", False, False),
        ("running", "R", True, False),
    ],
)
def test_one_that_waits_for_a_cpu_or_for_the_kernel_has_not_shown_what_it_does(
    *, syscall: str, state: str, is_worker: bool, expected: bool
) -> None:
    shown = ThreadState(syscall, is_worker=is_worker, guest_time=0, state=state)
    assert shown.is_on_its_way is expected
