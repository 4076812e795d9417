# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls are run in QEMU's RCU thread: nobody that anyone waits for is stopped."""

from __future__ import annotations

import os
import random
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.killing import kill_amid
from tests.support.marks import REAL_QEMU
from tests.support.paused import PausedQemu
from tests.support.resources import becomes, resources_of, traced_threads
from uffdballoon.lab.qemu import Accel, Qemu, QemuOptions
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.threads import find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from uffdballoon.target.injector import RemoteThread

pytestmark = REAL_QEMU

_ATTACHES = int(os.environ.get("UFFDBALLOON_ATTACHES", "20"))
_KILLS = int(os.environ.get("UFFDBALLOON_KILLS", "60"))
_USB = ("-device", "qemu-xhci,id=xhci")


@pytest.fixture(
    params=[
        pytest.param(
            QemuOptions(accel=Accel.KVM, extra=_USB), marks=pytest.mark.needs_kvm, id="kvm"
        ),
        pytest.param(
            QemuOptions(accel=Accel.TCG, processors=2, name_threads=True, extra=_USB),
            id="tcg-named",
        ),
    ]
)
def qemu(request: pytest.FixtureRequest) -> Iterator[Qemu]:
    with Qemu(request.param) as qemu:
        yield qemu


def _injector(target: Target) -> Injector:
    found = find_rcu_thread(target)
    assert found.thread is not None, found.why
    return Injector(target, found.thread)


def _attach_once(pid: int) -> None:
    with Target.open(pid) as target, _injector(target) as injector:
        obtain_userfaultfd(injector).uffd.close()
        assert injector.main_stops == 0


def _plug_and_unplug(qemu: Qemu) -> None:
    """What is unplugged is freed by a callback of RCU; the guest need not agree to USB."""
    for _ in range(2):  # the name can be given again once nothing of the first is left
        qemu.monitor.execute("device_add", driver="usb-tablet", id="tablet", bus="xhci.0")
        qemu.monitor.execute("device_del", id="tablet")
        qemu.monitor.wait_for_event("DEVICE_DELETED")


def test_it_is_neither_the_main_thread_nor_a_vcpu(qemu: Qemu) -> None:
    with Target.open(qemu.pid) as target:
        found = find_rcu_thread(target).thread
        assert found is not None
        vcpus = {cpu["thread-id"] for cpu in qemu.monitor.execute("query-cpus-fast")}
        assert found.tid not in vcpus | {qemu.pid}
        assert target.threads()[1].tid == found.tid


def _attach_often(qemu: Qemu, attaches: int) -> None:
    before = resources_of(qemu.pid)
    for _ in range(attaches):
        _attach_once(qemu.pid)
    assert resources_of(qemu.pid) == before
    _plug_and_unplug(qemu)


def test_it_is_found_where_qemu_was_run_by_a_link_and_renamed_itself(tmp_path: Path) -> None:
    """A thread has the name of the link, which the main one gives up by -name process=."""
    program = shutil.which("qemu-system-x86_64")
    assert program
    link = tmp_path / "kvm"
    link.symlink_to(program)
    options = QemuOptions(binary=str(link))
    with PausedQemu("-name", "web1,process=web1", options=options) as qemu:
        _attach_once(qemu.pid)


def test_attaching_stops_no_other_thread(qemu: Qemu) -> None:
    _attach_often(qemu, _ATTACHES)


@pytest.mark.campaign
def test_two_hundred_attaches_stop_no_other_thread(qemu: Qemu) -> None:
    _attach_often(qemu, 200)


def test_a_session_says_whom_it_stops(qemu: Qemu) -> None:
    said: list[str] = []
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path)), said.append) as session:
        stopped = session.status().stopped_us
    assert (stopped.thread, stopped.main_thread_stops) == ("RCU thread", 0)
    assert any("RCU thread stopped" in line for line in said)


def _obtain_over_and_over(pid: int, begin: Callable[[], object]) -> None:
    """Most of this time the thread is stopped; finding it and the code to borrow came before."""
    with Target.open(pid) as target, _injector(target) as injector:
        begin()
        while True:
            obtain_userfaultfd(injector).uffd.close()


def _kill_often(qemu: Qemu, kills: int) -> None:
    """Every second one is stopped and looked at first: so that many are known to be killed amid."""
    chance = random.Random(qemu.pid)  # noqa: S311 - moments, not secrets
    before = resources_of(qemu.pid)
    with Target.open(qemu.pid) as target, _injector(target) as injector:
        rcu = injector.tid
    amid = 0
    for number in range(kills):
        held = kill_amid(
            lambda begin: _obtain_over_and_over(qemu.pid, begin),
            chance,
            within_s=0.01,
            look=(lambda: traced_threads(qemu.pid)) if number % 2 else None,
        )
        assert held in (None, [], [rcu])
        amid += held == [rcu]
        qemu.guest.ping()
    assert amid > kills // 20, "hardly any was killed while it held the thread"
    assert becomes(qemu.pid, before)
    _plug_and_unplug(qemu)


def test_killed_managers_leave_nothing_and_rcu_works(qemu: Qemu) -> None:
    _kill_often(qemu, _KILLS)


@pytest.mark.campaign
def test_five_hundred_killed_managers_leave_nothing_and_rcu_works(qemu: Qemu) -> None:
    _kill_often(qemu, 500)


def test_a_manager_that_is_stopped_in_the_middle_holds_up_neither_guest_nor_monitor(
    qemu: Qemu,
) -> None:
    before = resources_of(qemu.pid)
    holds, let_go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            _hold_one(qemu.pid, holds[1], let_go[0])
        finally:
            os._exit(1)
    try:
        assert os.read(holds[0], 1)
        os.kill(child, signal.SIGSTOP)
        _, status = os.waitpid(child, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        (held,) = traced_threads(qemu.pid)
        assert held != qemu.pid
        for _ in range(20):
            qemu.guest.ping()
            assert qemu.monitor.execute("query-status")["running"]
    finally:
        os.kill(child, signal.SIGCONT)
        os.write(let_go[1], b".")
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert becomes(qemu.pid, before)
    _plug_and_unplug(qemu)


def _hold_one(pid: int, holds: int, let_go: int) -> None:
    """Stop a thread, say so, and keep it until told."""

    def hold(remote: RemoteThread) -> None:
        remote.scratch(64)
        os.write(holds, b".")
        os.read(let_go, 1)

    with Target.open(pid) as target, _injector(target) as injector:
        injector.run(hold)
    os._exit(0)
