# SPDX-License-Identifier: GPL-2.0-or-later
"""Traps that a service manager holds, while it starts the manager anew."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.holding import HOLD, is_kept, wait_until
from tests.support.marks import REAL_QEMU
from tests.support.moments import DIRECT, OWNED, SEED
from tests.support.resources import becomes, resources_of, userfaultfd_mappings
from tests.support.service_manager import ServiceManager
from uffdballoon.daemon import client
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.records.changes import ChangeReport
from uffdballoon.model.records.policy import PolicyChange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from uffdballoon.lab.microguest import PendingTouches

pytestmark = REAL_QEMU

_ARGUMENTS = (*HOLD, "--observer", "trace")


@pytest.fixture
def guest(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


@pytest.fixture
def service_manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as service_manager:
        yield service_manager


def _hold_and_end(
    guest: Qemu, service_manager: ServiceManager, how: signal.Signals, *more: object
) -> PendingTouches:
    """Return a touch of the balloon that waits, its manager having ended."""
    service_manager.start(guest.pid, *_ARGUMENTS, *more)
    where = {"gpa": DIRECT.start, "size": DIRECT.size_bytes, "granule": Granule.SMALL.value}
    client.request(guest.pid, "inflate", ChangeReport, guest_agreed=True, **where)
    assert {f"uffd-{guest.pid}", f"ledger-{guest.pid}"} <= service_manager.store.keys()
    assert not is_kept(guest)  # by a process
    service_manager.end(how)
    pending = guest.guest.start_touch(GpaRange.of(DIRECT.start, PAGE_BYTES), Access.WRITE)
    assert not pending.is_there(0.2)
    return pending


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "restarted"])
def test_a_service_that_is_started_anew_goes_on(
    guest: Qemu, service_manager: ServiceManager, how: signal.Signals
) -> None:
    before = resources_of(guest.pid)
    pending = _hold_and_end(guest, service_manager, how)
    service_manager.start(guest.pid, *_ARGUMENTS)
    pending.wait()
    state = client.status(guest.pid)
    assert (state.uffd_method, state.touches.violations) == ("kept", 1)
    assert state.observed.doubtful_touches == 0
    assert state.ballooned_bytes == DIRECT.size_bytes - PAGE_BYTES
    client.detach(guest.pid)
    assert service_manager.wait() == 0, service_manager.said
    assert service_manager.store == {}
    assert "STOPPING=1" in service_manager.told
    assert userfaultfd_mappings(guest.pid) == 0
    assert becomes(guest.pid, before)
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0


def test_the_monitor_is_held_with_the_rest(guest: Qemu, service_manager: ServiceManager) -> None:
    monitor = ("--qmp", guest.qmp_path)
    pending = _hold_and_end(guest, service_manager, signal.SIGKILL, *monitor)
    assert f"monitor-{guest.pid}" in service_manager.store
    service_manager.start(guest.pid, *_ARGUMENTS, *monitor)
    pending.wait()
    assert "connection to the monitor taken over" in service_manager.said
    state = client.status(guest.pid)
    assert state.touches.violations == 1
    assert state.observed.doubtful_touches == 0
    client.detach(guest.pid)
    assert service_manager.wait() == 0, service_manager.said
    assert service_manager.store == {}
    assert userfaultfd_mappings(guest.pid) == 0
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_service_that_stops_lets_go(guest: Qemu, service_manager: ServiceManager) -> None:
    pending = _hold_and_end(guest, service_manager, signal.SIGTERM)
    service_manager.drop()
    pending.wait()
    wait_until(lambda: userfaultfd_mappings(guest.pid) == 0)
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0


def test_the_units_status_says_what_is_in_force(
    guest: Qemu, service_manager: ServiceManager
) -> None:
    service_manager.start(guest.pid, *_ARGUMENTS, "--policy", "zero-read,observe")
    assert f"STATUS=attached to {guest.pid}, enforcing zero-read,observe" in service_manager.told
    client.request(guest.pid, "policy", PolicyChange, policy="observe")
    service_manager.wait_for(f"STATUS=attached to {guest.pid}, enforcing observe")
    client.detach(guest.pid)
    assert service_manager.wait() == 0, service_manager.said


def test_what_was_held_of_a_target_that_ended_is_left(
    start_qemu: Callable[[QemuOptions], Qemu], service_manager: ServiceManager
) -> None:
    """Its pid may be another's by then, to which what is stored does not belong."""
    old, new = (start_qemu(QemuOptions(accel=Accel.TCG)) for _ in range(2))
    service_manager.start(old.pid, *_ARGUMENTS)
    service_manager.end(signal.SIGKILL)
    old.send_signal(signal.SIGKILL)
    old.wait_for_exit()
    service_manager.store = {
        name.replace(str(old.pid), str(new.pid)): fd for name, fd in service_manager.store.items()
    }
    service_manager.start(new.pid, *_ARGUMENTS)
    assert client.status(new.pid).uffd_method != "kept"
    client.detach(new.pid)
    assert service_manager.wait() == 0, service_manager.said
