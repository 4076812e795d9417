# SPDX-License-Identifier: GPL-2.0-or-later
"""Which threads are the guest's processors, told from outside, without a monitor.

QEMU names them where it is asked to (-name debug-threads=on). Else those of KVM are told by
what they do: a vCPU's thread is in ioctl(KVM_RUN) on an fd that the kernel calls
``anon_inode:kvm-vcpu:N`` (virt/kvm/kvm_main.c: create_vcpu_fd). Of TCG's nothing tells.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from uffdballoon.target.process import Target, Thread

# QEMU, accel/kvm/kvm-accel-ops.c and accel/tcg/tcg-accel-ops-mttcg.c; -rr.c: one for all of them
_NAME = re.compile(r"CPU ([0-9]{1,9})/(?:KVM|TCG|HVF)")
_NAME_OF_ALL = "ALL CPUs/TCG"
_FD = re.compile(r"anon_inode:kvm-vcpu:([0-9]{1,9})")
_IOCTL = "16"  # x86-64
_KVM_RUN = 0xAE80  # linux/kvm.h
_RUNNING = "running"  # proc_pid_syscall(5): the thread is on a CPU, or about to be
# proc_pid_stat(5): 3, 9 and 43, counted from behind the name
_STATE_FIELD, _FLAGS_FIELD, _GUEST_TIME_FIELD = 0, 6, 40
_ON_ITS_WAY = "RD"  # on a CPU or waiting for one; in a sleep that no signal ends
# linux/sched.h: PF_IO_WORKER | PF_USER_WORKER. Such a thread shows the system call in which its
# maker made it, and KVM makes one in KVM_RUN (kvm-nx-lpage-recovery; seen with Linux 6.18).
_WORKER = 0x10 | 0x4000
_PATIENCE_S = 0.3
_FEWEST_LOOKS = 20  # on a busy host, where a look takes long and a thread waits for a CPU
_BETWEEN_S = 0.01
_FOR_THE_STARVED_S = 3.0


class ThreadState(NamedTuple):
    """What /proc tells of a thread: its system call, and its time in a guest in ticks."""

    syscall: str
    is_worker: bool
    guest_time: int
    state: str = "S"

    @property
    def is_on_its_way(self) -> bool:
        """Whether it has not shown yet what it does, as on a busy host."""
        return not self.is_worker and (self.syscall == _RUNNING or self.state in _ON_ITS_WAY)


def find_vcpus(
    target: Target, known: Mapping[int, int] | None = None, patience_s: float = _PATIENCE_S
) -> dict[int, int]:
    """Map the thread ids of the vCPUs to their numbers; empty where nothing tells all of them.

    Without names a number is KVM's, which is the APIC's id. ``known`` is what was found before:
    while KVM has as many vCPUs as that it is the answer. Looks for at most ``patience_s``, and
    longer where that is but a few looks, or while threads are on their way and nothing is certain.
    Where /proc is refused, ``known`` stays. Raises TargetGoneError.
    """
    named = vcpus_by_name(target.threads())
    if named:
        return named
    alive = target.tids()
    before = {tid: number for tid, number in (known or {}).items() if tid in alive}
    try:
        fds = vcpu_fds(target.fds())
        if not fds or (before and set(before.values()) == set(fds.values())):
            return before
        return _watch(target, fds, patience_s) or before
    except PermissionDeniedError:
        return before


def vcpus_by_name(threads: Iterable[Thread]) -> dict[int, int]:
    """Read the names that QEMU gives; a thread that runs all processors counts as number 0."""
    vcpus = {}
    for thread in threads:
        match = _NAME.fullmatch(thread.name)
        if match or thread.name == _NAME_OF_ALL:
            vcpus[thread.tid] = int(match[1]) if match else 0
    return vcpus


def vcpu_fds(links: Mapping[int, str]) -> dict[int, int]:
    """Map the fds that are vCPUs of KVM to their numbers."""
    matches = ((fd, _FD.fullmatch(link)) for fd, link in links.items())
    return {fd: int(match[1]) for fd, match in matches if match}


def parse_state(syscall: str, stat: str) -> ThreadState:
    """Read /proc/PID/task/TID/syscall and .../stat; raise ValueError or IndexError."""
    fields = stat.rpartition(")")[2].split()
    flags, guest_time = int(fields[_FLAGS_FIELD]), int(fields[_GUEST_TIME_FIELD])
    return ThreadState(syscall.strip(), bool(flags & _WORKER), guest_time, fields[_STATE_FIELD])


class Watch:
    """Samples of all threads, and what follows from them."""

    def __init__(self, fds: Mapping[int, int], main: int) -> None:
        self._fds = fds
        self._main = main
        self._found: dict[int, int] = {}
        self._others: set[int] = set()

    def see(self, states: Mapping[int, ThreadState]) -> bool:
        """Take a sample; tell whether every vCPU is known."""
        for tid, state in states.items():
            number = None if state.is_worker else _number_of(state.syscall, self._fds)
            if number is not None:
                self._found[tid] = number
            elif state.is_worker or state.syscall != _RUNNING:
                self._others.add(tid)
        return not self._missing()

    def conclude(self, states: Mapping[int, ThreadState]) -> dict[int, int]:
        """Return all vCPUs, or nothing.

        A guest that never rests is in KVM_RUN all the time, and on a CPU, where nobody sees its
        system call. It is told by its time in a guest, where the kernel accounts it, and by
        never being seen anywhere else. QEMU makes the threads in the order of the numbers.
        """
        missing = self._missing()
        if not missing:
            return self._found  # whoever else is on a CPU
        busy = [
            tid
            for tid, state in states.items()
            if tid not in self._found
            and not state.is_worker
            and tid != self._main
            and (state.guest_time > 0 or tid not in self._others)
        ]
        if len(busy) != len(missing):
            return {}
        return self._found | dict(zip(sorted(busy), missing, strict=True))

    def _missing(self) -> list[int]:
        return sorted(set(self._fds.values()) - set(self._found.values()))


def _number_of(syscall: str, fds: Mapping[int, int]) -> int | None:
    words = syscall.split()
    if words[:1] != [_IOCTL] or int(words[2], 16) != _KVM_RUN:
        return None
    return fds.get(int(words[1], 16))


def _watch(target: Target, fds: Mapping[int, int], patience_s: float) -> dict[int, int]:
    watch = Watch(fds, target.pid)
    deadline = time.monotonic() + patience_s
    last = deadline + _FOR_THE_STARVED_S if patience_s else deadline
    for look in itertools.count(1):
        states = _sample(target)
        now = time.monotonic()
        is_over = (look >= _FEWEST_LOOKS or not patience_s) and now >= deadline
        if watch.see(states):
            break
        some_come = any(state.is_on_its_way for state in states.values())
        if is_over and (now >= last or watch.conclude(states) or not some_come):
            break
        time.sleep(_BETWEEN_S)
    return watch.conclude(states)


def _sample(target: Target) -> dict[int, ThreadState]:
    states = {}
    for tid in target.tids():
        with contextlib.suppress(IndexError, ValueError):  # it ended meanwhile
            syscall, stat = (target.read_of_thread(tid, name) for name in ("syscall", "stat"))
            states[tid] = parse_state(syscall, stat)
    return states
