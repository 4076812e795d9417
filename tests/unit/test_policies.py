# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot be set while a guest is attached, and what another manager finds of what was set."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from uffdballoon.core.keeper import Held
from uffdballoon.core.ledger import NOTE_OFFSET
from uffdballoon.daemon.policy_requests import wish_of
from uffdballoon.errors import (
    PermissionDeniedError,
    RangeError,
    TargetGoneError,
    UffdballoonError,
    UnsupportedError,
    UsageError,
)
from uffdballoon.host.uffd import Feature
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.policy import PolicyInForce
from uffdballoon.model.terms import TOLD, ContractKind, Terms, TermsChange
from uffdballoon.observe.choice import Circumstances
from uffdballoon.session import SessionOptions
from uffdballoon.session.keeping import as_it_was_set, in_force, note_policy
from uffdballoon.session.policies import Policies, PolicyWish, change_notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.core.keeper import Keeping
    from uffdballoon.session.attachment import Attachment

MIB = 1 << 20
CAP = Terms(kind=ContractKind.CAP, floor_bytes=MIB)
SAME = TermsChange()


class _Attached:
    """What Policies needs of an attach to a guest of 64 MiB on node 0, half of it ballooned."""

    def __init__(self, policy: str = "observe", terms: Terms = TOLD) -> None:
        self.asked = self.options = SessionOptions(
            pid=os.getpid(), policy=parse_policy(policy), terms=terms
        )
        self.memory = -1
        self.known = Feature(0)
        self.machine = SimpleNamespace(monitor=object(), relay=object())
        self.vcpus = SimpleNamespace(numbers={7: 0})
        self.target = SimpleNamespace(pid=os.getpid(), pidfd=-1)
        block = SimpleNamespace(numa_node=0)
        self.layout = SimpleNamespace(
            ram_bytes=64 * MIB,
            segments=[SimpleNamespace(block=block, size_bytes=64 * MIB)],
            blocks=[block],
        )
        self.observer = SimpleNamespace(kind=ObserverKind.TRACE)
        self.enforcer = SimpleNamespace(ledger=SimpleNamespace(ballooned_bytes=32 * MIB))
        self.nodes = SimpleNamespace(ballooned_bytes=lambda _: 32 * MIB)

    def circumstances(self, options: SessionOptions) -> Circumstances:
        return Circumstances(
            pid=options.pid,
            blocks=(),
            features=self.known,
            contract=options.terms.kind,
            has_device=True,
            reports_free_pages=False,
        )

    def hold_to(self, options: SessionOptions) -> int:
        self.options = options
        return 2

    @property
    def policies(self) -> Policies:
        return Policies(cast("Attachment", self))

    def refuses(self, error: type[UffdballoonError], match: str, wish: PolicyWish) -> None:
        before = self.options
        with pytest.raises(error, match=match):
            self.policies.change(wish)
        assert self.options is before


def _wish(policy: str | None = None, terms: TermsChange = SAME, **more: Any) -> PolicyWish:  # noqa: ANN401 - a flag
    return PolicyWish(policy=parse_policy(policy) if policy else None, terms=terms, **more)


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("ledger")
    os.ftruncate(fd, 1 << 16)
    yield fd
    os.close(fd)


def test_a_change_tells_what_was_and_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    attached = _Attached()
    change = attached.policies.change(
        _wish("freeze=5s,kill", TermsChange(floor_bytes=MIB, kind=CAP.kind))
    )
    assert (change.before.policy, change.after.policy) == ("observe", "freeze=5s,kill")
    assert change.after.floor_bytes == MIB
    assert (change.went_on, change.below_floor) == (2, False)
    told = change_notice(change)
    assert (told.before, told.after) == (change.before, change.after)
    assert told.why == "observe under told -> freeze=5s,kill under cap (floor 1 MiB)"


def test_a_wish_for_nothing_new_does_nothing_and_shows_what_is() -> None:
    attached = _Attached("freeze", CAP)
    for wish in (_wish(), _wish("freeze"), _wish(None, TermsChange(floor_bytes=MIB))):
        change = attached.policies.change(wish)
        assert change.before == change.after == in_force(attached.asked)
        assert change.went_on == 0
    assert attached.options is attached.asked


def test_a_floor_above_what_is_in_the_balloon_is_told() -> None:
    attached = _Attached(terms=CAP)
    change = attached.policies.change(_wish(None, TermsChange(floor_bytes=48 * MIB)))
    assert change.below_floor
    assert "less than the floor" in str(change_notice(change).why)
    attached.nodes.ballooned_bytes = lambda _: 0
    change = attached.policies.change(
        _wish(None, TermsChange(floor_bytes=0, node_floors=((0, MIB),)))
    )
    assert change.below_floor


@pytest.mark.parametrize("rung", ["freeze", "kill", "poison"])
def test_a_rung_that_hurts_needs_the_monitor_or_the_operators_word(
    rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    attached = _Attached()
    attached.known = Feature.POISON
    attached.machine = SimpleNamespace(monitor=None, relay=None)
    attached.refuses(UsageError, "needs the monitor", _wish(rung))
    assert attached.policies.change(_wish(rung, without_monitor=True)).after.policy == rung


def test_a_boot_grace_needs_the_monitor_as_well() -> None:
    attached = _Attached(terms=CAP)
    attached.machine = SimpleNamespace(monitor=None, relay=None)
    grace = TermsChange(grace_ns=1)
    attached.refuses(UsageError, "a boot grace needs the monitor", _wish(None, grace))


def test_who_lost_the_monitor_may_change_what_hurts_nobody_more() -> None:
    attached = _Attached("freeze", CAP)
    attached.machine = SimpleNamespace(monitor=None, relay=None)
    attached.policies.change(_wish(None, TermsChange(floor_bytes=2 * MIB)))
    assert attached.policies.change(_wish("observe")).after.policy == "observe"


def test_pause_needs_a_monitor_that_is_there_whatever_the_operators_word() -> None:
    attached = _Attached()
    attached.machine = SimpleNamespace(monitor=None, relay=object())
    attached.refuses(UsageError, "pause needs the monitor", _wish("pause", without_monitor=True))


def test_poison_needs_a_kernel_that_can() -> None:
    attached = _Attached()
    attached.refuses(UnsupportedError, "poison cannot", _wish("poison"))


def test_kill_is_refused_when_the_kernel_would_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = _Attached()
    asked: list[object] = []

    def refuse(*call: object) -> None:
        asked.append(call)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    attached.refuses(PermissionDeniedError, "kill cannot be performed", _wish("zero-read,kill"))
    assert asked == [(-1, 0)]
    with pytest.raises(PermissionDeniedError) as refusal:
        attached.policies.change(_wish("zero-read,kill"))
    assert "CAP_KILL" in refusal.value.why
    assert "--policy zero-read,kill" in refusal.value.hint

    def gone(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(signal, "pidfd_send_signal", gone)
    attached.refuses(TargetGoneError, "ended", _wish("kill"))


def test_told_needs_an_observer_that_tells_deflates() -> None:
    attached = _Attached(terms=CAP)
    attached.observer = SimpleNamespace(kind=ObserverKind.SCAN)
    told = _wish(None, TermsChange(kind=ContractKind.TOLD))
    attached.refuses(UsageError, "scan cannot serve the contract told", told)


def test_floors_that_cannot_be_are_refused() -> None:
    attached = _Attached(terms=CAP)
    attached.refuses(UsageError, "cannot stay", _wish(None, TermsChange(floor_bytes=65 * MIB)))
    node_3 = TermsChange(node_floors=((3, MIB),))
    attached.refuses(RangeError, "no memory on node 3", _wish(None, node_3))
    too_much = TermsChange(node_floors=((0, 65 * MIB),))
    attached.refuses(UsageError, "cannot stay", _wish(None, too_much))


def test_terms_change_as_far_as_they_are_given() -> None:
    full = Terms(
        kind=ContractKind.CAP,
        floor_bytes=5,
        grace_ns=6,
        grace_bytes=7,
        node_floors=((0, 8), (1, 9)),
    )
    assert SAME.applied_to(full) == full
    counting = TermsChange(count_reported=True).applied_to(full)
    assert counting == replace(full, count_reported=True)
    assert SAME.applied_to(counting) == counting
    assert TermsChange(count_reported=False).applied_to(counting) == full
    change = TermsChange(grace_bytes=0, node_floors=((1, 0), (2, 3)))
    assert change.applied_to(full) == Terms(
        kind=ContractKind.CAP, floor_bytes=5, grace_ns=6, node_floors=((0, 8), (2, 3))
    )
    assert TermsChange(kind=ContractKind.TOLD).applied_to(full) == TOLD


def test_a_limit_is_a_floor_by_what_it_leaves_of_the_ram() -> None:
    attached = _Attached(terms=CAP)
    after = attached.policies.change(_wish(None, TermsChange(limit_bytes=24 * MIB))).after
    assert (after.floor_bytes, after.limit_bytes) == (40 * MIB, 24 * MIB)
    assert str(after) == "observe under cap (floor 40 MiB, by limit 24 MiB)"
    after = attached.policies.change(_wish("freeze", without_monitor=True)).after
    assert (after.floor_bytes, after.limit_bytes) == (40 * MIB, 24 * MIB)
    after = attached.policies.change(_wish(None, TermsChange(floor_bytes=MIB))).after
    assert (after.floor_bytes, after.limit_bytes) == (MIB, None)
    after = attached.policies.change(_wish(None, TermsChange(limit_bytes=64 * MIB))).after
    assert (after.floor_bytes, after.limit_bytes) == (0, 64 * MIB)


@pytest.mark.parametrize("limit_bytes", [0, 64 * MIB + 1])
def test_a_limit_that_cannot_be_is_refused(limit_bytes: int) -> None:
    attached = _Attached(terms=CAP)
    wish = _wish(None, TermsChange(limit_bytes=limit_bytes))
    attached.refuses(UsageError, "no limit for this guest", wish)


def test_attaching_with_the_same_limit_goes_on_with_what_was_set(memory: int) -> None:
    asked = SessionOptions(
        pid=1,
        terms=TermsChange(kind=CAP.kind, limit_bytes=MIB).applied_to(TOLD),
        held=Held(cast("Keeping", None), -1, memory),
    )
    now = replace(asked, terms=TermsChange(limit_bytes=2 * MIB).applied_to(asked.terms))
    now = replace(now, terms=now.terms.within(64 * MIB))
    note_policy(memory, asked=in_force(asked), now=in_force(now))
    assert as_it_was_set(asked, lambda _: None).terms == now.terms
    other = replace(asked, terms=replace(asked.terms, limit_bytes=3 * MIB))
    assert as_it_was_set(other, lambda _: None).terms == other.terms


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        (TermsChange(limit_bytes=1), TOLD),
        (TermsChange(count_reported=True), TOLD),
        (TermsChange(limit_bytes=1, floor_bytes=1), CAP),
        (TermsChange(kind=ContractKind.CAP), TOLD),
        (TermsChange(floor_bytes=1), TOLD),
        (TermsChange(grace_ns=1, kind=ContractKind.TOLD), CAP),
        (TermsChange(node_floors=((0, 1), (0, 2))), CAP),
    ],
)
def test_what_makes_no_terms_is_refused(change: TermsChange, terms: Terms) -> None:
    with pytest.raises(UsageError):
        change.applied_to(terms)


def test_a_request_says_only_what_changes() -> None:
    assert wish_of({}) == _wish()
    assert wish_of(
        {
            "policy": "freeze",
            "contract": "cap",
            "floor_bytes": 1,
            "node_floors": [[0, 2]],
            "boot_grace_ns": 3,
            "boot_grace_bytes": 4,
            "without_monitor": True,
        }
    ) == _wish(
        "freeze",
        TermsChange(
            kind=ContractKind.CAP, floor_bytes=1, node_floors=((0, 2),), grace_ns=3, grace_bytes=4
        ),
        without_monitor=True,
    )


@pytest.mark.parametrize(
    "message",
    [
        {"policy": 7},
        {"policy": "no-rung"},
        {"contract": "none"},
        {"contract": ["cap"]},
        {"floor_bytes": -1},
        {"floor_bytes": True},
        {"boot_grace_ns": 0.5},
        {"boot_grace_bytes": 1 << 70},
        {"node_floors": {"0": 1}},
        {"node_floors": [[0]]},
        {"node_floors": [[128, 1]]},
        {"node_floors": [[0, "1"]]},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        wish_of(message)


def _taking_over(memory: int, policy: str = "observe", terms: Terms = TOLD) -> SessionOptions:
    held = Held(cast("Keeping", None), -1, memory)
    return SessionOptions(pid=1, policy=parse_policy(policy), terms=terms, held=held)


def _in_force(policy: str, terms: Terms = TOLD, *, without_monitor: bool = False) -> PolicyInForce:
    return PolicyInForce.of(parse_policy(policy), terms, without_monitor=without_monitor)


def test_what_was_set_holds_for_a_manager_that_asks_for_the_same_again(memory: int) -> None:
    terms = Terms(
        kind=ContractKind.CAP,
        floor_bytes=1 << 61,
        grace_ns=1,
        grace_bytes=2,
        node_floors=tuple((node, 1 << 61) for node in range(128)),
    )
    ladder = "zero-read,throttle=1000/s:16384,freeze=1ns,kill"
    now = _in_force(ladder, terms, without_monitor=True)
    note_policy(memory, asked=_in_force("observe"), now=now)
    said: list[str] = []
    for _ in range(2):  # and the one after it
        options = as_it_was_set(_taking_over(memory), said.append)
        assert in_force(options) == now
        assert (options.policy, options.terms) == (parse_policy(ladder), terms)
    assert ladder in said[0]


def test_what_was_set_later_replaces_what_was_set(memory: int) -> None:
    long = _in_force("zero-read,throttle=1000/s,freeze=1s,kill", CAP)
    for now in (long, _in_force("freeze")):
        note_policy(memory, asked=_in_force("observe"), now=now)
        assert in_force(as_it_was_set(_taking_over(memory), lambda _: None)) == now


def test_an_attach_that_asks_for_something_else_means_it_for_good(memory: int) -> None:
    note_policy(memory, asked=_in_force("observe"), now=_in_force("freeze"))
    said: list[str] = []
    other = _taking_over(memory, "zero-read,observe")
    assert as_it_was_set(other, said.append) is other
    assert "freeze" in said[0]
    first = _taking_over(memory)
    assert as_it_was_set(first, said.append) is first
    assert len(said) == 1


@pytest.mark.parametrize("torn", [b"", b"[", b"[]\n", b'[{"policy":1},2]\n', b"\xff\n"])
def test_a_note_that_cannot_be_read_is_none(memory: int, torn: bytes) -> None:
    os.pwrite(memory, torn, NOTE_OFFSET)
    options = _taking_over(memory)
    assert as_it_was_set(options, lambda _: None) is options


def test_a_note_of_a_rung_that_is_not_known_here_is_none(memory: int) -> None:
    note_policy(memory, asked=_in_force("observe"), now=replace(_in_force("kill"), policy="melt"))
    options = _taking_over(memory)
    assert as_it_was_set(options, lambda _: None) is options


def test_without_a_holder_nothing_is_noted() -> None:
    note_policy(-1, asked=_in_force("observe"), now=_in_force("freeze"))
    options = SessionOptions(pid=1)
    assert as_it_was_set(options, lambda _: None) is options
