# SPDX-License-Identifier: GPL-2.0-or-later
"""What the parts of a session say to each other; stand-ins are below them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from uffdballoon.core.fault_loop import Resolution, TouchRecord
from uffdballoon.errors import QmpError, RangeError, WindowBudgetError
from uffdballoon.model.addresses import HvaRange
from uffdballoon.model.notice import notice
from uffdballoon.model.origin import Origin
from uffdballoon.model.records.events import EventKind, Notice
from uffdballoon.model.touch import Access, Action, Role, Verdict
from uffdballoon.session.monitoring import Monitoring
from uffdballoon.session.parts import Following, Guarding, Reclaiming
from uffdballoon.session.reactions import Reactions
from uffdballoon.session.resets import Resets
from uffdballoon.vmm.base import Heard

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.model.job import Job
    from uffdballoon.session.attachment import Attachment

_FD = 7
_STOPPED = notice(EventKind.STOPPED)
_RECORD = TouchRecord(
    time_ns=1,
    span=HvaRange.of(0x1000, 0x1000),
    tid=9,
    access=Access.WRITE,
    verdict=Verdict.VIOLATION,
    action=Action.GRANT,
    role=Role.VCPU,
    sequence=1,
    answer_ns=1,
)


class _Loop:
    """What the parts need of a fault loop."""

    def __init__(self) -> None:
        self.records: list[TouchRecord] = []
        self.dropped = 0
        self.failure: Exception | None = None
        self.resets: list[int] = []
        self.held: list[SimpleNamespace] = []

    def parked(self) -> list[SimpleNamespace]:
        return list(self.held)

    def resolve(self, touch: SimpleNamespace, _how: Resolution) -> None:
        self.held.remove(touch)

    def event_fileno(self) -> int:
        return _FD

    def drain(self) -> list[TouchRecord]:
        records, self.records = self.records, []
        return records

    def stats(self) -> SimpleNamespace:
        return SimpleNamespace(events_dropped=self.dropped)

    def reset(self, at_ns: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.resets.append(at_ns)


class _Machine:
    """A machine that tells what is given to it."""

    is_lost = False

    def __init__(self) -> None:
        self.heard = Heard([], None, balloon_moved=False)
        self.failure: Exception | None = None
        self.pauses = 0

    def fileno(self) -> int:
        return _FD

    def hear(self) -> Heard:
        return self.heard

    def reconnect(self) -> list[Notice]:
        if self.failure is not None:
            raise self.failure
        return []

    def due_s(self) -> float:
        return 60.0

    def pausing(self, let_go: Callable[[], None]) -> Job[None]:
        self.pauses += 1
        try:
            yield 0.5
            if self.failure is not None:
                raise self.failure
        finally:
            let_go()


class _Follower:
    """A follower that notes what is asked of it, in order."""

    def __init__(self, did: list[str]) -> None:
        self.did = did
        self.failure: Exception | None = None

    def fileno(self) -> int:
        return _FD

    def answer(self) -> None:
        self.did.append("answer")

    def arm(self) -> None:
        self.did.append("arm")

    def catch_up(self) -> None:
        self.did.append("catch up")
        if self.failure is not None:
            raise self.failure

    def take_news(self) -> list[Notice]:
        self.did.append("take news")
        return [_STOPPED]

    def note(self) -> None:
        return None


@pytest.fixture
def did() -> list[str]:
    return []


@pytest.fixture
def attached(did: list[str]) -> Any:  # noqa: ANN401 - a stand-in
    return SimpleNamespace(
        enforcer=SimpleNamespace(loop=_Loop(), ledger=SimpleNamespace(ballooned_bytes=0)),
        guard=SimpleNamespace(go_on=lambda: did.append("go on")),
        layout=SimpleNamespace(to_gpa=lambda hva: hva),
        vcpus=SimpleNamespace(number_of=lambda _: 0),
        machine=_Machine(),
        origin=Origin(4711, "web1"),
        follower=_Follower(did),
    )


def test_touches_are_told_once_and_have_the_others_see_to_windows(attached: Any) -> None:  # noqa: ANN401
    touches = Reactions(cast("Attachment", attached))
    attached.enforcer.loop.records = [_RECORD]
    (source,) = touches.sources()
    assert source.on_ready()
    assert not source.on_ready()
    tick = touches.tick()
    assert [event.kind for event in tick.events] == [EventKind.VIOLATION]
    assert [(event.pid, event.vm) for event in tick.events] == [(4711, "web1")]
    assert tick.others_s is not None
    assert touches.tick() == ([], None, None)


_PAUSE = replace(_RECORD, action=Action.PAUSE)


def _held() -> SimpleNamespace:
    return SimpleNamespace(action=Action.PAUSE)


def test_a_pause_holds_up_nobody_and_is_told_when_the_vm_has_stopped(attached: Any) -> None:  # noqa: ANN401
    touches = Reactions(cast("Attachment", attached))
    loop, machine = attached.enforcer.loop, attached.machine
    loop.records, loop.held = [_PAUSE], [_held()]
    (source,) = touches.sources()
    source.on_ready()
    tick = touches.tick()
    assert ([event.kind for event in tick.events], tick.due_s) == ([EventKind.VIOLATION], 0.5)
    loop.records = [_PAUSE]
    source.on_ready()  # another one meanwhile: it is let go with the first
    assert loop.held
    tick = touches.tick()
    assert [event.kind for event in tick.events] == [EventKind.VIOLATION, EventKind.PAUSED]
    assert tick.due_s is None
    assert (machine.pauses, loop.held) == (1, [])


def test_a_touch_that_comes_when_the_others_were_let_go_is_paused_as_well(attached: Any) -> None:  # noqa: ANN401
    touches = Reactions(cast("Attachment", attached))
    loop, machine = attached.enforcer.loop, attached.machine
    late = [_held()]
    resolve = loop.resolve

    def resolve_and_have_another(touch: SimpleNamespace, how: Resolution) -> None:
        resolve(touch, how)
        if late:
            loop.held.append(late.pop())

    loop.resolve = resolve_and_have_another
    loop.records, loop.held = [_PAUSE], [_held()]
    kinds = [event.kind for event in touches.drain()]
    assert kinds == [EventKind.VIOLATION, EventKind.PAUSED, EventKind.PAUSED]
    assert (machine.pauses, loop.held) == (2, [])


@pytest.mark.parametrize("ends", ["it fails", "it is closed"])
def test_touches_are_let_go_however_a_pause_ends(attached: Any, ends: str) -> None:  # noqa: ANN401
    touches = Reactions(cast("Attachment", attached))
    loop = attached.enforcer.loop
    loop.records, loop.held = [_PAUSE], [_held()]
    (source,) = touches.sources()
    source.on_ready()
    touches.tick()
    if ends == "it is closed":
        touches.close()
    else:
        attached.machine.failure = QmpError("no", why="it does not stop")
        assert [event.kind for event in touches.tick().events] == [EventKind.PAUSE_FAILED]
    assert loop.held == []


def test_what_the_ring_dropped_is_told(attached: Any) -> None:  # noqa: ANN401
    touches = Reactions(cast("Attachment", attached))
    attached.enforcer.loop.records = [_RECORD]
    attached.enforcer.loop.dropped = 7
    touch, missed = touches.drain()
    assert touch.kind is EventKind.VIOLATION
    assert isinstance(missed, Notice)
    assert (missed.kind, missed.count) == (EventKind.MISSED, 7)
    assert touches.drain() == []


def test_what_the_monitor_told_has_the_others_ticked_at_once(attached: Any) -> None:  # noqa: ANN401
    monitor = Monitoring(attached, Resets(attached))
    attached.machine.heard = Heard([_STOPPED], None, balloon_moved=False)
    (source,) = monitor.sources()
    source.on_ready()
    assert monitor.tick() == ([_STOPPED], 60.0, 0.0)
    assert monitor.tick() == ([], 60.0, None)


def test_what_the_monitor_told_is_not_lost_when_connecting_fails(attached: Any) -> None:  # noqa: ANN401
    monitor = Monitoring(attached, Resets(attached))
    attached.machine.heard = Heard([_STOPPED], None, balloon_moved=False)
    (source,) = monitor.sources()
    source.on_ready()
    attached.machine.failure = QmpError("no")
    with pytest.raises(QmpError):
        monitor.tick()
    attached.machine.failure = None
    assert monitor.tick() == ([_STOPPED], 60.0, 0.0)


def test_a_reset_is_followed_before_the_balloon_is_looked_at(
    attached: Any,  # noqa: ANN401
    did: list[str],
) -> None:
    monitor = Monitoring(attached, Resets(attached))
    attached.machine.heard = Heard([], 4711, balloon_moved=True)
    monitor.hear()
    assert attached.enforcer.loop.resets == [4711]
    assert did == ["go on", "catch up"]


def test_a_reset_that_cannot_be_followed_is_told_and_tried_again(attached: Any) -> None:  # noqa: ANN401
    resets = Resets(attached)
    attached.enforcer.loop.failure = RangeError("not now")
    resets.note(4711)
    (failed,) = resets.tick().events
    assert failed.kind is EventKind.RESET_FAILED
    assert resets.tick().due_s is not None
    attached.enforcer.loop.failure = None
    assert resets.tick() == ([], None, None)
    assert attached.enforcer.loop.resets == [4711]


def test_news_are_answered_before_the_balloon_is_looked_at_and_the_others_ticked_at_once(
    attached: Any,  # noqa: ANN401
    did: list[str],
) -> None:
    following = Following(attached.follower)
    (source,) = following.sources()
    assert not source.on_ready()
    assert following.tick() == ([_STOPPED], None, 0.0)
    assert did == ["answer", "catch up", "take news"]
    assert following.tick().others_s is None


def test_windows_beyond_the_budget_are_told_as_news(attached: Any) -> None:  # noqa: ANN401
    attached.follower.failure = WindowBudgetError("no")
    assert Following(attached.follower).tick().events == [_STOPPED]


def test_what_was_given_up_is_armed_before_it_is_counted_or_split(
    attached: Any,  # noqa: ANN401
    did: list[str],
) -> None:
    def count() -> list[Notice]:
        did.append("count")
        return []

    guard = SimpleNamespace(
        is_limited=True, note_step=lambda: did.append("note"), look=count, due_s=lambda: 0.02
    )
    reclaimer = SimpleNamespace(is_pending=True, work=lambda: did.append("split"))
    assert Guarding(cast("Any", guard), attached.follower).tick().due_s == 0.02
    yielder = SimpleNamespace(is_yielded=False)
    reclaiming = Reclaiming(cast("Any", reclaimer), attached.follower, cast("Any", yielder))
    assert reclaiming.tick().due_s is None
    assert did == ["note", "arm", "count", "catch up", "split"]
    yielder.is_yielded = True  # the memory is QEMU's for now
    assert reclaiming.tick().due_s is None
    assert did == ["note", "arm", "count", "catch up", "split", "catch up"]


def test_nothing_is_armed_for_who_has_nothing_to_count_or_split(
    attached: Any,  # noqa: ANN401
    did: list[str],
) -> None:
    guard = SimpleNamespace(is_limited=False, look=list, due_s=lambda: None)
    reclaimer = SimpleNamespace(is_pending=False, work=lambda: None)
    Guarding(cast("Any", guard), attached.follower).tick()
    yielder = SimpleNamespace(is_yielded=False)
    Reclaiming(cast("Any", reclaimer), attached.follower, cast("Any", yielder)).tick()
    assert did == []
