# SPDX-License-Identifier: GPL-2.0-or-later
"""Traps that an operator lifts for a time, before a background snapshot or for no reason given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from tests.support.yielding import (
    BALLOON,
    FIRST,
    OWNED,
    SEED,
    Attached,
    Destination,
    attach,
    migration_of,
    runs,
    set_capability,
)
from uffdballoon.errors import QmpError, TargetBusyError, UsageError
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU

_LONG_NS = 3600 * 10**9
_SHORT_NS = 10**8


@pytest.fixture
def held(qemu: Qemu) -> Iterator[Attached]:
    """A guest whose balloon is trapped, and whose next migration is none of ours."""
    qemu.guest.fill(OWNED, SEED)
    with attach(qemu) as session:
        held = Attached(qemu, session)
        held.inflate()
        yield held
    assert not qemu.guest.verify(OWNED, SEED).bad_lines


def test_a_snapshot_that_qemu_refused_is_taken_after_a_yield(held: Attached) -> None:
    with pytest.raises(QmpError, match="not compatible"):
        set_capability(held.qemu, "background-snapshot")
    held.session.yielding.lift(_LONG_NS)
    set_capability(held.qemu, "background-snapshot")
    held.qemu.monitor.execute("migrate", uri="exec:cat > /dev/null")
    taken_up = held.wait_for(EventKind.TAKEN_UP)
    assert migration_of(held.qemu) == "completed"
    assert runs(held.qemu)
    assert taken_up.size == 0
    assert [event.kind for event in held.told].count(EventKind.YIELDED) == 1
    held.violates(BALLOON.start)
    assert not held.session.disagreements()


def test_what_is_touched_meanwhile_is_the_guests_when_the_traps_are_set_by_hand(
    held: Attached,
) -> None:
    held.session.yielding.lift(_LONG_NS)
    held.qemu.guest.touch(FIRST, Access.WRITE)
    held.serve()
    assert held.session.status().yielded
    given_bytes = held.session.yielding.take_up().given_bytes
    assert given_bytes >= FIRST.size_bytes
    assert held.session.status().ballooned_bytes == BALLOON.size_bytes - given_bytes
    assert held.session.touch_counts().violations == 0
    held.violates(BALLOON.end - FIRST.size_bytes)
    with pytest.raises(UsageError, match="the traps are set"):
        held.session.yielding.take_up()


def test_the_traps_are_set_again_when_the_time_is_up(held: Attached) -> None:
    held.session.yielding.lift(_SHORT_NS)
    held.wait_for(EventKind.TAKEN_UP)
    assert not held.session.status().yielded
    held.violates(BALLOON.start)


def test_a_plain_migration_does_not_end_the_time(held: Attached) -> None:
    held.session.yielding.lift(_LONG_NS)
    held.qemu.monitor.execute("migrate", uri="exec:cat > /dev/null")
    held.wait_until(lambda: migration_of(held.qemu) == "completed")
    held.wait_until(lambda: "completed" in [getattr(e, "why", "") for e in held.told])
    held.serve()
    assert held.session.status().yielded
    held.qemu.monitor.execute("cont")
    held.session.yielding.take_up()
    held.violates(BALLOON.start)


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    destination = Destination(tmp_path / "destination")
    yield destination
    destination.close()


def test_a_snapshot_that_outlasts_the_time_is_waited_for(
    held: Attached, destination: Destination
) -> None:
    held.session.yielding.lift(_SHORT_NS)
    set_capability(held.qemu, "background-snapshot")
    held.qemu.monitor.execute("migrate", uri=destination.uri)
    held.wait_for(EventKind.MIGRATION)
    held.wait_until(lambda: held.session.yielding.is_time_up)
    assert held.session.status().yielded
    with pytest.raises(TargetBusyError, match="cannot be set now"):
        held.session.yielding.take_up()
    destination.go_on()
    held.wait_for(EventKind.TAKEN_UP)
    assert migration_of(held.qemu) == "completed"
    assert runs(held.qemu)
    held.violates(BALLOON.start)


def test_a_vcpu_that_is_held_goes_on_at_a_yield(qemu: Qemu) -> None:
    options = SessionOptions(
        pid=qemu.pid, qmp_path=str(qemu.qmp_path), policy=parse_policy("freeze")
    )
    with Session(options) as session:
        held = Attached(qemu, session)
        held.inflate()
        touch = qemu.guest.start_touch(FIRST, Access.WRITE)
        held.wait_until(session.held)
        session.yielding.lift(_LONG_NS)
        touch.wait()
        assert not session.held()
        with pytest.raises(TargetBusyError, match="trapped now"):
            held.inflate(OWNED)


@pytest.mark.parametrize("monitor", [True, False], ids=["monitor", "without"])
def test_the_verbs_lift_and_set_and_say_so(qemu: Qemu, *, monitor: bool) -> None:
    with attached(qemu, *([] if monitor else ["--qmp", "none"])):
        span = ("--gpa", hex(BALLOON.start), "--size", BALLOON.size_bytes, "--guest-agreed")
        assert run("inflate", qemu.pid, *span).returncode == 0
        assert "the traps are set" in refused(2, "take-up", qemu.pid)
        assert "24 hours" in refused(2, "yield", qemu.pid, "--for", "25h")
        assert not status_of(qemu)["yielded"]
        said = run("yield", qemu.pid, "--for", "1h")
        assert said.returncode == 0
        assert "nothing is trapped for 3600s at most; 8 MiB are in the balloon still" in said.stderr
        assert status_of(qemu)["yielded"]
        qemu.guest.touch(FIRST, Access.WRITE)
        said = run("take-up", qemu.pid)
        assert said.returncode == 0
        assert "trapped again" in said.stderr
        assert not status_of(qemu)["yielded"]
        assert status_of(qemu)["touches"]["violations"] == 0
        qemu.guest.touch(FIRST, Access.WRITE)  # the guest's, as of before
        qemu.guest.touch(BALLOON, Access.WRITE)
        assert status_of(qemu)["touches"]["violations"] > 0
        assert run("yield", qemu.pid, "--for", "100ms").returncode == 0
