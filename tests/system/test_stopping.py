# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread that cannot be stopped, or does not go on: named in time, and left as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from ptrace.binding import func as ptrace_requests

from tests.support.filters import build_filtered
from tests.support.freezing import FreezingGroup, freezing_group
from tests.support.victim import Victim, build_victim
from uffdballoon.cli.doctor import doctor
from uffdballoon.errors import ExitCode, TargetBusyError, TargetGoneError, UffdballoonError
from uffdballoon.lab.qemu import Memory, Qemu, QemuOptions
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target import injector
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target
from uffdballoon.target.ptrace import seize
from uffdballoon.target.readiness import refuse_unless_ready, thread_state
from uffdballoon.target.seccomp import look_at_filters
from uffdballoon.vmm.qemu.threads import find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.needs_ptrace,
    pytest.mark.needs_userfaultfd,
    pytest.mark.needs_root,
]

_PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def victim_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_victim(tmp_path_factory.mktemp("victim"))


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_filtered(tmp_path_factory.mktemp("filtered"))


@pytest.fixture(params=["sleep", "poll", "spin"])
def victim(request: pytest.FixtureRequest, victim_binary: Path) -> Iterator[Victim]:
    with Victim(victim_binary, request.param) as victim:
        yield victim


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FreezingGroup]:
    with freezing_group(request.param, tmp_path) as group:
        yield group


def obtain(pid: int) -> str:
    with Target.open(pid, any_process=True) as target, Injector(target) as injector:
        obtained = obtain_userfaultfd(injector)
    obtained.uffd.close()
    return obtained.method


def wait_until_let_go(pid: int) -> None:
    """Wait for the end of the thread that traced, by which alone a frozen thread is let go."""
    wait_until(lambda: thread_state(pid, pid).tracer_pid == 0)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_frozen_process_is_named_before_anything_is_done(
    victim: Victim, group: FreezingGroup
) -> None:
    refuse_unless_ready(victim.pid)
    group.freeze(victim.pid)
    with pytest.raises(TargetBusyError, match="is frozen") as refused:
        refuse_unless_ready(victim.pid)
    assert str(group.switch) in refused.value.why
    assert str(group.switch) in refused.value.hint
    group.thaw()
    refuse_unless_ready(victim.pid)
    victim.wait_for_turns()


def test_an_injection_into_a_frozen_process_ends_and_leaves_no_trace(
    victim: Victim, group: FreezingGroup
) -> None:
    """As where it is frozen between the look and the call."""
    before = victim.resources()
    with Target.open(victim.pid, any_process=True) as target, Injector(target) as injecting:
        permits = look_at_filters(victim.pid, target.pidfd)
        group.freeze(victim.pid)
        with pytest.raises(TargetBusyError, match="is frozen"):
            obtain_userfaultfd(injecting, permits=permits)
    wait_until_let_go(victim.pid)
    group.thaw()
    victim.wait_for_turns()
    assert victim.broken() == 0
    assert victim.resources() == before
    assert obtain(victim.pid) == "direct"


def test_a_call_that_was_begun_before_the_freeze_closes_what_it_holds(
    victim: Victim, group: FreezingGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freeze it after each of the calls of `passed`, but for the first, in turn."""
    before = victim.resources()
    real = injector.RemoteThread.call
    for first in range(1, 4):
        made = 0

        def call(self: injector.RemoteThread, *args: int, **named: object) -> int:
            nonlocal made
            if made == first:  # noqa: B023
                group.freeze(victim.pid)
            made += 1
            return real(self, *args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(injector.RemoteThread, "call", call)
        with (
            Target.open(victim.pid, any_process=True) as target,
            Injector(target) as injecting,
            pytest.raises(TargetBusyError, match="is frozen"),
        ):
            obtain_userfaultfd(injecting, "passed")
        wait_until_let_go(victim.pid)
        group.thaw()
        victim.wait_for_turns()
        assert victim.broken() == 0
        assert victim.resources() == before


@pytest.mark.needs_qemu
def test_a_qemu_that_was_frozen_answers_after_the_refused_attach(
    group: FreezingGroup, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(QemuOptions(memory=Memory(size_bytes=128 << 20)))
    group.freeze(qemu.pid)
    with pytest.raises(TargetBusyError, match="is frozen"):
        Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path)))
    group.thaw()
    assert qemu.monitor.execute("query-status")["status"] == "running"
    qemu.guest.ping()
    wait_until_let_go(qemu.pid)
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path))):
        pass


def borrowed_of(qemu: Qemu) -> int:
    with Target.open(qemu.pid) as target:
        thread = find_rcu_thread(target).thread
    assert thread is not None
    return thread.tid


def check_refused_alike(qemu: Qemu, says: str) -> UffdballoonError:
    """Have an attach refused, with what `doctor` says as well; return how."""
    with pytest.raises(TargetBusyError, match=says) as refused:
        Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path)))
    told = CliRunner().invoke(doctor, ["--pid", str(qemu.pid), "--json"], standalone_mode=False)
    lacks = [p["detail"] for p in json.loads(told.stdout)["probes"] if not p["ok"]]
    assert refused.value.why in lacks
    assert told.return_value == ExitCode.UNSUPPORTED
    return refused.value


@pytest.mark.needs_qemu
def test_a_thread_to_borrow_that_alone_is_frozen_is_named_by_doctor_and_attach(
    group: FreezingGroup, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(QemuOptions(memory=Memory(size_bytes=128 << 20)))
    tid = borrowed_of(qemu)
    group.freeze_thread(qemu.pid, tid)
    try:
        refused = check_refused_alike(qemu, f"thread {tid} of process {qemu.pid} is frozen")
        assert str(group.switch) in refused.hint
        qemu.guest.ping()
    finally:
        group.thaw()  # under v1 QEMU could not be ended either
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path))):
        qemu.guest.ping()


@pytest.mark.needs_qemu
def test_a_thread_to_borrow_that_alone_is_traced_is_named_by_doctor_and_attach(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    """As by `strace -p` of that thread."""
    qemu = start_qemu(QemuOptions(memory=Memory(size_bytes=128 << 20)))
    tid = borrowed_of(qemu)
    tracer = seize(qemu.pid, tid)
    try:
        refused = check_refused_alike(qemu, f"thread {tid} of process {qemu.pid} is traced")
        assert f"process {os.getpid()} (a debugger" in refused.why
    finally:
        tracer.interrupt()
        tracer.detach()
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path))):
        qemu.guest.ping()


def test_a_thread_that_sleeps_uninterruptibly_is_named_and_let_go(filtered: Path) -> None:
    process = subprocess.Popen([filtered, "vfork"], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: thread_state(process.pid, process.pid).letter == "D")
        with pytest.raises(TargetBusyError, match="does not stop") as refused:
            obtain(process.pid)
        assert "state D" in refused.value.why
        wait_until_let_go(process.pid)
        assert process.stdin
        process.stdin.close()  # the child ends, and its parent goes on
        wait_until(lambda: thread_state(process.pid, process.pid).letter == "S")
        assert obtain(process.pid) == "direct"
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_process_that_job_control_stopped_is_injected_into_and_stays_stopped(
    victim: Victim,
) -> None:
    before = victim.resources()
    victim.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: thread_state(victim.pid, victim.pid).letter == "T")
    for _ in range(5):
        assert obtain(victim.pid) == "direct"
        wait_until(lambda: thread_state(victim.pid, victim.pid).letter == "T")
    turns = victim.turns()
    assert victim.resources() == before
    assert victim.turns() == turns
    victim.process.send_signal(signal.SIGCONT)
    victim.wait_for_turns()
    assert victim.broken() == 0


def test_a_process_that_a_debugger_holds_is_named(victim: Victim) -> None:
    holds, says = os.pipe()
    debugger = os.fork()
    if not debugger:
        try:
            ptrace_requests.ptrace_attach(victim.pid)
            os.waitpid(victim.pid, 0)  # else the victim got its SIGSTOP at the debugger's end
            os.write(says, b".")
            signal.pause()
        finally:
            os._exit(0)
    try:
        os.close(says)
        assert os.read(holds, 1)
        assert thread_state(victim.pid, victim.pid).letter == "t"
        for attempt in (lambda: refuse_unless_ready(victim.pid), lambda: obtain(victim.pid)):
            with pytest.raises(TargetBusyError, match="traced already") as refused:
                attempt()
            assert f"process {debugger} (a debugger" in refused.value.why
            assert "keeps it stopped" in refused.value.why
        assert thread_state(victim.pid, victim.pid).tracer_pid == debugger
    finally:
        os.kill(debugger, signal.SIGKILL)
        os.waitpid(debugger, 0)
        os.close(holds)
    victim.wait_for_turns()
    assert victim.broken() == 0


def test_a_process_that_has_the_pid_of_one_that_ended_is_left_alone(
    victim: Victim, filtered: Path
) -> None:
    """The pidfd speaks of another process than the pid does: as when the pid was used again."""
    other = subprocess.Popen([filtered, "nap"], stdout=subprocess.DEVNULL)
    pidfd = os.pidfd_open(other.pid)
    other.kill()
    other.wait()
    calls: list[object] = []
    with Target.open(victim.pid, any_process=True) as target, Injector(target) as injecting:
        target.pidfd, pinned = pidfd, target.pidfd
        with pytest.raises(TargetGoneError):
            injecting.run(calls.append)
        target.pidfd = pinned
    os.close(pidfd)
    assert not calls
    victim.wait_for_turns()
    assert victim.broken() == 0
