# SPDX-License-Identifier: GPL-2.0-or-later
"""When traps are lifted, and when they are set again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.support.monitor import WrittenMonitor
from uffdballoon.errors import QmpError, TargetBusyError, UsageError
from uffdballoon.model.records.changes import TakenUp, Yielded
from uffdballoon.model.records.events import EventKind
from uffdballoon.session.yielding import Yielding
from uffdballoon.vmm.qemu.migrating import Migrations, is_under_way, needs_memory

if TYPE_CHECKING:
    from uffdballoon.model.job import Job
    from uffdballoon.session.attachment import Attachment

_BALLOONED_BYTES = 8 << 20
_TOUCHED_BYTES = 4096
_LONG_NS = 3600 * 10**9


class _Yielder:
    """Is yielded by the test, as by a relay; ``busy`` as long as QEMU has a userfaultfd."""

    def __init__(self) -> None:
        self.is_yielded = False
        self.busy = False
        self.relay: object = None

    def watch(self, relay: object) -> None:
        self.relay = relay

    def yield_now(self) -> None:
        self.is_yielded = True

    def take_up(self) -> int:
        if self.busy:
            raise TargetBusyError("no", why="QEMU's is there", hint="wait")
        self.is_yielded = False
        return _TOUCHED_BYTES


class _Migrations:
    """``truth`` is what QEMU would answer, (needs_memory, is_under_way)."""

    def __init__(self) -> None:
        self.needs_memory = self.is_under_way = False
        self.truth = (True, False)
        self.told: list[str] = []

    def take(self) -> list[str]:
        told, self.told = self.told, []
        return told

    def asking(self) -> Job[None]:
        yield 0.002
        self.needs_memory, self.is_under_way = self.truth


class _Stage:
    def __init__(self) -> None:
        self.yielder = _Yielder()
        self.migrations = _Migrations()
        self.machine = SimpleNamespace(migrations=self.migrations, is_lost=False, relay="relay")
        self.armed_bytes = 0
        loop = SimpleNamespace(stats=lambda: SimpleNamespace(armed_bytes=self.armed_bytes))
        ledger = SimpleNamespace(ballooned_bytes=_BALLOONED_BYTES)
        attached = SimpleNamespace(
            target=SimpleNamespace(pid=4711),
            machine=self.machine,
            yielder=self.yielder,
            enforcer=SimpleNamespace(loop=loop, ledger=ledger),
        )
        self.part = Yielding(cast("Attachment", attached))

    def tick(self, *statuses: str) -> list[tuple[EventKind, int | None]]:
        """Tick until nothing is asked any more; return what was told."""
        self.migrations.told += statuses
        told = []
        for _ in range(3):
            told += [(event.kind, event.size) for event in self.part.tick().events]
        return told


@pytest.fixture
def stage() -> _Stage:
    """One with a balloon, whose next migration is a background snapshot."""
    stage = _Stage()
    stage.tick()
    stage.armed_bytes = _BALLOONED_BYTES
    stage.tick()
    return stage


def test_nothing_is_due_and_nothing_watched_without_migrations() -> None:
    stage = _Stage()
    assert stage.part.tick() == ([], None, None)
    assert stage.yielder.relay is None


def test_the_relay_is_watched_once_the_next_migration_needs_the_memory(stage: _Stage) -> None:
    assert stage.yielder.relay == "relay"
    stage.machine.is_lost = True
    stage.tick()
    assert stage.yielder.relay is None


def test_what_was_yielded_is_told_and_taken_up_at_the_end(stage: _Stage) -> None:
    stage.yielder.is_yielded = True
    assert stage.tick("setup", "active") == [(EventKind.YIELDED, _BALLOONED_BYTES)]
    assert stage.tick() == []
    assert stage.tick("completed") == [(EventKind.TAKEN_UP, _TOUCHED_BYTES)]
    assert stage.tick() == []


def test_what_is_yielded_before_its_event_is_heard_stays_so(stage: _Stage) -> None:
    stage.tick("setup", "completed")  # one before, that did not need the memory
    stage.yielder.is_yielded = True
    assert stage.tick() == []
    assert stage.yielder.is_yielded


def test_one_that_follows_at_once_keeps_it_yielded(stage: _Stage) -> None:
    stage.yielder.is_yielded = True
    stage.tick("setup", "failed", "setup")
    assert stage.yielder.is_yielded


def test_what_the_relay_did_not_know_of_is_yielded_late(stage: _Stage) -> None:
    assert stage.tick("setup") == [(EventKind.YIELDED, _BALLOONED_BYTES)]
    assert stage.yielder.is_yielded


def test_a_plain_migration_is_taken_up_at_once_when_it_was_yielded_for(stage: _Stage) -> None:
    stage.migrations.truth = (False, True)
    stage.yielder.is_yielded = True
    assert [kind for kind, _ in stage.tick("setup")] == [EventKind.YIELDED, EventKind.TAKEN_UP]
    assert stage.yielder.relay is None
    assert stage.tick("completed") == []


def test_one_that_met_our_userfaultfd_is_told(stage: _Stage) -> None:
    assert stage.tick("failed") == [(EventKind.YIELD_FAILED, None)]


def test_what_qemu_keeps_is_tried_again_seldom_and_told_once(stage: _Stage) -> None:
    stage.yielder.is_yielded = stage.yielder.busy = True
    stage.tick("setup")
    told = [kind for _ in range(10) for kind, _ in stage.tick("cancelled")]
    assert told == [EventKind.NOT_TAKEN_UP]
    due_s = stage.part.tick().due_s
    assert due_s is not None
    assert due_s > 1
    stage.yielder.busy = False
    assert stage.tick() == [(EventKind.TAKEN_UP, _TOUCHED_BYTES)]


def test_one_that_ended_while_the_monitor_was_lost_is_taken_up(stage: _Stage) -> None:
    stage.yielder.is_yielded = True
    stage.tick("setup")
    stage.machine.is_lost = True
    assert stage.tick() == []
    stage.machine.is_lost = False
    assert stage.tick() == [(EventKind.TAKEN_UP, _TOUCHED_BYTES)]


def test_one_that_outlasts_the_loss_of_the_monitor_stays_yielded(stage: _Stage) -> None:
    stage.yielder.is_yielded = True
    stage.tick("setup")
    stage.migrations.truth = (True, True)
    stage.machine.is_lost = True
    stage.tick()
    stage.machine.is_lost = False
    assert stage.tick() == []
    assert stage.yielder.is_yielded


def test_an_operators_time_ends_the_yield_and_not_before(stage: _Stage) -> None:
    assert stage.part.lift(_LONG_NS) == Yielded(ballooned_bytes=_BALLOONED_BYTES, for_ns=_LONG_NS)
    stage.migrations.truth = (False, False)
    assert stage.tick() == [(EventKind.YIELDED, _BALLOONED_BYTES)]
    due_s = stage.part.tick().due_s
    assert due_s is not None
    assert due_s <= _LONG_NS / 1e9
    stage.part.lift(1)
    assert stage.tick() == [
        (EventKind.YIELDED, _BALLOONED_BYTES),
        (EventKind.TAKEN_UP, _TOUCHED_BYTES),
    ]
    assert stage.part.tick().due_s is None


def test_an_operators_time_ends_with_the_migration_that_needed_the_memory(stage: _Stage) -> None:
    stage.part.lift(_LONG_NS)
    stage.tick("setup")
    assert stage.tick("completed") == [(EventKind.TAKEN_UP, _TOUCHED_BYTES)]


def test_an_operators_time_outlasts_a_plain_migration(stage: _Stage) -> None:
    stage.migrations.truth = (False, True)
    stage.part.lift(_LONG_NS)
    stage.tick("setup")
    assert stage.tick("completed") == []
    assert stage.yielder.is_yielded


def test_a_migration_that_nobody_told_of_yet_outlasts_an_operators_time(stage: _Stage) -> None:
    stage.migrations.truth = (True, True)
    stage.part.lift(1)
    assert stage.tick() == [(EventKind.YIELDED, _BALLOONED_BYTES)]
    assert stage.yielder.relay == "relay"
    with pytest.raises(TargetBusyError, match="cannot be set now"):
        stage.part.take_up()
    assert stage.tick("setup", "active") == []
    assert stage.tick("completed") == [(EventKind.TAKEN_UP, _TOUCHED_BYTES)]


def test_an_operators_time_ends_without_a_monitor_as_well(stage: _Stage) -> None:
    stage.machine.is_lost = True
    stage.part.lift(1)
    assert [kind for kind, _ in stage.tick()] == [EventKind.YIELDED, EventKind.TAKEN_UP]


def test_a_monitor_that_comes_back_does_not_end_an_operators_time(stage: _Stage) -> None:
    stage.migrations.truth = (False, False)
    stage.machine.is_lost = True
    stage.part.lift(_LONG_NS)
    stage.tick()
    stage.machine.is_lost = False
    stage.tick()
    assert stage.yielder.is_yielded


def test_what_qemu_holds_at_an_operators_word_stays_yielded(stage: _Stage) -> None:
    stage.part.lift(_LONG_NS)
    stage.yielder.busy = True
    with pytest.raises(TargetBusyError):
        stage.part.take_up()
    assert stage.yielder.is_yielded
    stage.yielder.busy = False
    assert stage.part.take_up() == TakenUp(given_bytes=_TOUCHED_BYTES)
    assert stage.part.is_time_up
    with pytest.raises(UsageError, match="the traps are set"):
        stage.part.take_up()


def _able(**states: bool) -> list[dict[str, Any]]:
    return [
        {"capability": name.replace("_", "-"), "state": state} for name, state in states.items()
    ]


@pytest.mark.parametrize(
    ("able", "state", "needs"),
    [
        (_able(background_snapshot=True), "running", True),
        (_able(background_snapshot=False, postcopy_ram=False), "inmigrate", False),
        (_able(postcopy_ram=True), "inmigrate", True),
        (_able(postcopy_ram=True), "running", False),
        ([], "running", False),
    ],
)
def test_snapshots_and_the_destination_of_postcopy_need_the_memory(
    able: list[dict[str, Any]], state: str, *, needs: bool
) -> None:
    monitor = WrittenMonitor({}, query_migrate_capabilities=able, query_status={"status": state})
    assert needs_memory(monitor) is needs


@pytest.mark.parametrize(
    ("told", "is_it"),
    [
        ({}, False),
        ({"status": "none"}, False),
        ({"status": "cancelled"}, False),
        ({"status": "setup"}, True),
        ({"status": "active"}, True),
        ({"status": "cancelling"}, True),
    ],
)
def test_one_is_under_way_from_setup_to_its_end(told: dict[str, str], *, is_it: bool) -> None:
    assert is_under_way(WrittenMonitor({}, query_migrate=told)) is is_it


@pytest.mark.parametrize("answer", [None, 5, [1], [{"capability": "events"}], {"a": 1}])
def test_an_answer_of_another_shape_is_named(answer: object) -> None:
    with pytest.raises(QmpError, match="not understood"):
        needs_memory(WrittenMonitor({}, query_migrate_capabilities=answer))


@pytest.mark.parametrize(("before", "changes"), [(False, 2), (True, 0)])
def test_events_are_had_told_and_left_as_they_were(*, before: bool, changes: int) -> None:
    monitor = WrittenMonitor(
        {}, query_migrate_capabilities=_able(events=before), migrate_set_capabilities={}
    )
    Migrations(cast("Any", monitor)).close()
    set_to = [
        asked["capabilities"][0]["state"]  # type: ignore[index] # JSON
        for asked in monitor.was_asked("migrate-set-capabilities")
    ]
    assert set_to == [True, False][:changes]
