# SPDX-License-Identifier: GPL-2.0-or-later
"""Held vCPUs, floors, resets and vCPUs that come later, on a real QEMU."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from tests.support.resources import becomes, resources_of, userfaultfd_mappings
from uffdballoon.errors import UsageError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.events import Event, EventKind
from uffdballoon.model.terms import TOLD, ContractKind, Terms
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.microguest import PendingTouches

pytestmark = REAL_QEMU

OWNED = GpaRange.of(32 << 20, 1 << 20)
BALLOON = GpaRange.of(64 << 20, 4 << 20)
_PATIENCE_S = 30.0


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _session(qemu: Qemu, policy: str, terms: Terms = TOLD) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid, qmp_path=str(qemu.qmp_path), policy=parse_policy(policy), terms=terms
        )
    )


def _freeze_through_the_command(qemu: Qemu) -> PendingTouches:
    size = BALLOON.size_bytes
    inflated = run("inflate", qemu.pid, "--gpa", BALLOON.start, "--size", size, "--guest-agreed")
    assert inflated.returncode == 0, inflated.stderr
    pending = qemu.guest.start_touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
    _until(lambda: status_of(qemu)["held"])
    return pending


def test_a_frozen_vcpu_is_shown_and_released_by_the_command(qemu: Qemu) -> None:
    with attached(qemu, "--policy", "freeze"):
        pending = _freeze_through_the_command(qemu)
        (held,) = status_of(qemu)["held"]
        assert (held["gpa"], held["vcpu"], held["access"]) == (BALLOON.start, 0, "write")
        assert held["action"] == "freeze"
        assert "by freeze" in run("status", qemu.pid).stdout
        said = refused(2, "release", qemu.pid, "--tid", held["tid"] + 1)
        assert f"held are: {held['tid']} by freeze" in said
        assert not pending.is_there()
        assert run("release", qemu.pid, "--tid", held["tid"]).returncode == 0
        pending.wait()
        assert status_of(qemu)["held"] == []
        events = [
            json.loads(line)
            for line in run("events", qemu.pid, "--json").stdout.split("\n")
            if line
        ]
        assert [event["action"] for event in events] == ["freeze", "release"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_manager_that_ends_leaves_no_vcpu_frozen(qemu: Qemu, number: signal.Signals) -> None:
    qemu.guest.fill(OWNED, 5)
    before = resources_of(qemu.pid)
    with attached(qemu, "--policy", "zero-read,freeze") as manager:
        pending = _freeze_through_the_command(qemu)
        manager.send_signal(number)
        manager.wait(_PATIENCE_S)
        pending.wait(10.0)
    assert qemu.guest.verify(OWNED, 5).bad_lines == 0
    assert userfaultfd_mappings(qemu.pid) == 0
    assert becomes(qemu.pid, before)


def test_cap_is_asked_for_with_a_floor_and_shown_with_it(qemu: Qemu) -> None:
    floor = BALLOON.size_bytes - 2 * PAGE_BYTES
    cap = ("--contract", "cap", "--floor", floor, "--boot-grace", "10s", "--policy", "observe")
    with attached(qemu, *cap):
        size = BALLOON.size_bytes
        run("inflate", qemu.pid, "--gpa", BALLOON.start, "--size", size, "--guest-agreed")
        qemu.guest.touch(GpaRange.of(BALLOON.start, 3 * PAGE_BYTES), Access.WRITE)
        state = status_of(qemu)
        assert state["contract"]["kind"] == "cap"
        assert state["contract"]["floor_bytes"] == floor
        assert state["contract"]["below_floor"] is True  # by the page that observe granted
        assert state["touches"]["granted"] == 2
        assert state["touches"]["violations"] == 1
        assert "below it" in run("status", qemu.pid).stdout
        histogram = state["latency_histogram_ns"]
        assert sum(count for _, count in histogram) >= 3
        assert histogram == sorted(histogram)


def test_what_makes_no_contract_is_refused(qemu: Qemu) -> None:
    pid = qemu.pid
    refused(2, "attach", pid, "--floor", "1M")
    refused(2, "attach", pid, "--boot-grace", "1s")
    refused(2, "attach", pid, "--contract", "cap")
    assert "at character 8" in refused(2, "attach", pid, "--policy", "freeze,kill")
    assert "monitor" in refused(2, "attach", pid, "--qmp", "none", "--policy", "pause")
    with pytest.raises(UsageError):
        Session(SessionOptions(pid=pid, policy=parse_policy("pause")))


def test_a_reset_empties_the_balloon_and_begins_the_boot_grace(
    accel: Accel, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu = start_qemu(QemuOptions(accel=accel, memory=Memory(size_bytes=192 << 20), seabios=True))
    terms = Terms(kind=ContractKind.CAP, floor_bytes=BALLOON.size_bytes, grace_bytes=2 * PAGE_BYTES)
    with _session(qemu, "zero-read,observe", terms) as session:
        session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        told: list[Event] = []

        def is_told() -> bool:
            told.extend(session.drain_monitor())
            return bool(told)

        qemu.guest.reset()
        _until(is_told)
        # SeaBIOS resets the machine once or twice more when it finds that it has run before.
        told += session.settle()
        assert {event.kind for event in told} == {EventKind.RESET}
        state = session.status()
        assert (state.ballooned_bytes, state.windows) == (0, 0)
        assert state.contract.in_grace
        assert userfaultfd_mappings(qemu.pid) == 0
        session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
        qemu.guest.touch(GpaRange.of(BALLOON.start, 3 * PAGE_BYTES), Access.WRITE)
        touches = session.status().touches
        assert (touches.granted, touches.violations) == (2, 1)


def test_a_vcpu_that_is_plugged_in_later_is_known_as_one(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(
        QemuOptions(
            accel=Accel.TCG,
            memory=Memory(size_bytes=192 << 20),
            extra=("-smp", "1,maxcpus=2", "-cpu", "qemu64"),
        )
    )
    with _session(qemu, "observe") as session:
        assert len(session.vcpus) == 1
        slots = qemu.monitor.execute("query-hotpluggable-cpus")
        (free,) = [slot for slot in slots if "qom-path" not in slot]
        qemu.monitor.execute("device_add", driver=free["type"], id="late", **free["props"])

        def is_known() -> bool:
            session.keep_up()
            return len(session.vcpus) == 2

        _until(is_known)
        assert sorted(session.vcpus.values()) == [0, 1]


def test_a_window_of_pages_that_were_all_granted_is_let_go(qemu: Qemu) -> None:
    with _session(qemu, "observe") as session:
        few = GpaRange.of(BALLOON.start, 4 * PAGE_BYTES)
        session.inflate(few, Granule.SMALL, guest_agreed=True)
        qemu.guest.touch(few, Access.WRITE)
        assert session.status().windows == 1
        session.keep_up()
        assert session.status().windows == 0
        assert userfaultfd_mappings(qemu.pid) == 0


def test_windows_keep_to_a_budget_and_trap_all_the_same(qemu: Qemu) -> None:
    options = SessionOptions(
        pid=qemu.pid,
        qmp_path=str(qemu.qmp_path),
        policy=parse_policy("observe"),
        max_windows=2,
    )
    starts = [(64 << 20) + i * (4 << 20) for i in range(8)]
    with Session(options) as session:
        for start in starts:
            session.inflate(GpaRange.of(start, PAGE_BYTES), Granule.SMALL, guest_agreed=True)
        assert session.status().windows <= 2
        for start in starts:
            qemu.guest.touch(GpaRange.of(start, PAGE_BYTES), Access.WRITE)
        assert session.status().touches.violations == len(starts)
