# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations for which QEMU needs the memory's only userfaultfd, and others."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import Command
from tests.support.marks import REAL_QEMU
from tests.support.yielding import (
    BALLOON,
    FIRST,
    OWNED,
    PATIENCE_S,
    SEED,
    Attached,
    Destination,
    attach,
    migration_of,
    runs,
    set_capability,
)
from uffdballoon.errors import TargetBusyError
from uffdballoon.lab.qemu import Accel, Memory, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    with contextlib.closing(Destination(tmp_path / "destination")) as destination:
        yield destination


@pytest.fixture
def snapshotting(qemu: Qemu) -> Qemu:
    """A guest whose next migration is a background snapshot."""
    qemu.guest.fill(OWNED, SEED)
    set_capability(qemu, "background-snapshot")
    return qemu


@pytest.fixture
def attached(snapshotting: Qemu) -> Iterator[Attached]:
    with attach(snapshotting) as session:
        attached = Attached(snapshotting, session)
        attached.inflate()
        yield attached


def test_a_background_snapshot_succeeds_and_the_balloon_is_trapped_after_it(
    attached: Attached, tmp_path: Path, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    qemu, image = attached.qemu, tmp_path / "snapshot"
    qemu.monitor.execute("migrate", uri=f"exec:cat > {image}")
    yielded = attached.wait_for(EventKind.YIELDED)
    taken_up = attached.wait_for(EventKind.TAKEN_UP)
    assert migration_of(qemu) == "completed"
    assert runs(qemu)
    assert yielded.size == BALLOON.size_bytes
    assert taken_up.size == 0
    assert not attached.session.status().yielded
    assert attached.session.status().ballooned_bytes == BALLOON.size_bytes
    attached.violates(BALLOON.start)
    assert not qemu.guest.verify(OWNED, SEED).bad_lines
    assert not attached.session.disagreements()
    incoming = (*qemu.options.extra, "-incoming", f"exec:cat {image}")
    restored = start_qemu(replace(qemu.options, extra=incoming))
    assert not restored.guest.verify(OWNED, SEED).bad_lines


def test_what_is_cancelled_is_taken_up_or_said_to_be_kept_by_qemu(
    attached: Attached, destination: Destination
) -> None:
    """QEMU 7.2 keeps its userfaultfd after a snapshot that was cancelled."""
    attached.qemu.monitor.execute("migrate", uri=destination.uri)
    attached.wait_for(EventKind.YIELDED)
    assert attached.session.status().yielded
    asked = attached.session.ask_balloon(attached.qemu.options.memory.size_bytes // 2)
    assert asked.why.startswith("QEMU discards nothing during a background snapshot")
    with pytest.raises(TargetBusyError, match="trapped"):
        attached.inflate(OWNED)
    attached.qemu.monitor.execute("migrate_cancel")
    ends = (EventKind.TAKEN_UP, EventKind.NOT_TAKEN_UP)
    attached.wait_until(lambda: any(map(attached.has_told, ends)))
    assert attached.session.status().yielded is not attached.has_told(EventKind.TAKEN_UP)
    assert runs(attached.qemu)


def test_what_is_touched_meanwhile_is_the_guests_and_no_violation(
    attached: Attached, destination: Destination
) -> None:
    qemu = attached.qemu
    qemu.monitor.execute("migrate", uri=destination.uri)
    attached.wait_for(EventKind.YIELDED)
    touch = qemu.guest.start_touch(FIRST, Access.WRITE)
    destination.go_on()
    touch.wait()
    taken_up = attached.wait_for(EventKind.TAKEN_UP)
    assert taken_up.size
    assert attached.session.status().ballooned_bytes == BALLOON.size_bytes - taken_up.size
    assert attached.session.touch_counts().violations == 0
    attached.violates(BALLOON.end - PAGE_BYTES)


def test_a_touch_that_is_held_goes_on_when_the_traps_are_lifted(snapshotting: Qemu) -> None:
    options = SessionOptions(
        pid=snapshotting.pid,
        qmp_path=str(snapshotting.qmp_path),
        policy=parse_policy("freeze"),
    )
    with Session(options) as session:
        attached = Attached(snapshotting, session)
        attached.inflate()
        touch = snapshotting.guest.start_touch(FIRST, Access.WRITE)
        attached.wait_until(session.held)
        snapshotting.monitor.execute("migrate", uri="exec:cat > /dev/null")
        attached.wait_for(EventKind.TAKEN_UP)
        touch.wait()
        assert not session.held()


@pytest.mark.parametrize("kind", ObserverKind)
def test_the_balloon_is_trapped_after_it_whatever_observes(
    kind: ObserverKind, snapshotting: Qemu
) -> None:
    options = SessionOptions(
        pid=snapshotting.pid,
        qmp_path=str(snapshotting.qmp_path),
        observer=kind,
        terms=Terms(kind=ContractKind.CAP, floor_bytes=BALLOON.size_bytes),
    )
    with Session(options) as session:
        attached = Attached(snapshotting, session)
        attached.inflate()
        snapshotting.monitor.execute("migrate", uri="exec:cat > /dev/null")
        attached.wait_for(EventKind.TAKEN_UP)
        assert migration_of(snapshotting) == "completed"
        assert runs(snapshotting)
        attached.violates(BALLOON.start)
        assert not session.disagreements()


def test_a_plain_migration_leaves_the_traps_alone(qemu: Qemu) -> None:
    with attach(qemu) as session:
        attached = Attached(qemu, session)
        attached.inflate()
        qemu.monitor.execute("migrate", uri="exec:cat > /dev/null")
        attached.wait_until(lambda: migration_of(qemu) == "completed")
        attached.wait_for(EventKind.MIGRATION)
        attached.serve()
        assert not attached.has_told(EventKind.YIELDED)
        assert not session.status().yielded
        qemu.monitor.execute("cont")
        attached.violates(BALLOON.start)


def test_the_capability_is_learned_before_the_first_window(qemu: Qemu) -> None:
    with attach(qemu) as session:
        attached = Attached(qemu, session)
        set_capability(qemu, "background-snapshot")
        attached.inflate()
        attached.serve()
        qemu.monitor.execute("migrate", uri="exec:cat > /dev/null")
        attached.wait_for(EventKind.TAKEN_UP)
        assert migration_of(qemu) == "completed"
        assert runs(qemu)


def test_the_capability_of_events_is_put_back(qemu: Qemu) -> None:
    def has_events() -> Any:  # noqa: ANN401 - QEMU's answer
        told = qemu.monitor.execute("query-migrate-capabilities")
        return next(each["state"] for each in told if each["capability"] == "events")

    with attach(qemu):
        assert has_events()
    assert not has_events()
    set_capability(qemu, "events")
    with attach(qemu):
        pass
    assert has_events()


def test_a_guest_goes_on_when_its_manager_is_killed_in_the_middle(
    snapshotting: Qemu, destination: Destination
) -> None:
    qemu, command = snapshotting, Command()
    with command.attached(qemu.pid, "--qmp", qemu.qmp_path) as manager:
        span = ("--gpa", hex(BALLOON.start), "--size", BALLOON.size_bytes, "--guest-agreed")
        assert command.run("inflate", qemu.pid, *span).returncode == 0
        qemu.monitor.execute("migrate", uri=destination.uri)
        deadline = time.monotonic() + PATIENCE_S
        while not command.ask("status", qemu.pid)["yielded"]:
            assert time.monotonic() < deadline
        manager.kill()
        manager.wait()
    destination.go_on()
    qemu.guest.touch(FIRST, Access.WRITE)
    assert not qemu.guest.verify(OWNED, SEED).bad_lines
    assert runs(qemu)


@pytest.mark.needs_kvm
def test_shared_memory_that_qemu_fills_as_it_reads_is_the_guests(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    memory = Memory(backing=Backing.MEMFD, share=True, size_bytes=192 << 20)
    qemu = start_qemu(QemuOptions(accel=Accel.KVM, memory=memory))
    qemu.guest.fill(OWNED, SEED)
    set_capability(qemu, "background-snapshot")
    with attach(qemu) as session:
        attached = Attached(qemu, session)
        attached.inflate()
        qemu.monitor.execute("migrate", uri="exec:cat > /dev/null")
        taken_up = attached.wait_for(EventKind.TAKEN_UP)
        assert migration_of(qemu) == "completed"
        assert taken_up.size == BALLOON.size_bytes - session.status().ballooned_bytes
        assert not session.disagreements()
        attached.inflate()
        attached.violates(BALLOON.start)
    assert not qemu.guest.verify(OWNED, SEED).bad_lines
