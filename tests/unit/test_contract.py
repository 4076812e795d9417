# SPDX-License-Identifier: GPL-2.0-or-later
"""The C contract against the reference, on generated histories."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.contract import Contract
from tests.support.histories import (
    HEAD_BYTES,
    STEP_BYTES,
    build_player,
    play_by_c,
    play_by_reference,
)
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Role, Verdict

if TYPE_CHECKING:
    from pathlib import Path

_HISTORIES = 100_000
_MOST_STEPS = 60


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_player(tmp_path_factory.mktemp("histories"))


def test_the_fault_loop_judges_a_hundred_thousand_histories_as_the_reference_does(
    player: Path,
) -> None:
    chance = random.Random(7)  # noqa: S311 - the same histories in every run
    histories = [
        chance.randbytes(HEAD_BYTES + STEP_BYTES * chance.randint(4, _MOST_STEPS))
        for _ in range(_HISTORIES)
    ]
    told, at = play_by_c(player, histories), 0
    for history in histories:
        expected = play_by_reference(history)
        assert told[at : at + len(expected)] == expected, history.hex()
        at += len(expected)
    assert at == len(told)


# Few, but of those a failing one is made small.
@given(st.binary(min_size=HEAD_BYTES + 4 * STEP_BYTES, max_size=HEAD_BYTES + 60 * STEP_BYTES))
def test_a_history_in_which_the_two_differ_is_made_small(player: Path, history: bytes) -> None:
    assert play_by_c(player, [history]) == play_by_reference(history)


def _cap(floor_bytes: int, *, grace_ns: int = 0, grace_bytes: int = 0) -> Contract:
    kind = ContractKind.CAP
    terms = Terms(kind=kind, floor_bytes=floor_bytes, grace_ns=grace_ns, grace_bytes=grace_bytes)
    contract = Contract(terms)
    contract.inflate(range(10))
    return contract


def test_told_calls_every_touch_of_a_ballooned_page_a_violation() -> None:
    contract = Contract(Terms())
    contract.inflate([3])
    assert contract.touch(3, Role.VCPU, 0) is Verdict.VIOLATION
    assert contract.touch(3, Role.DEVICE_WRITER, 0) is Verdict.VIOLATION
    assert contract.touch(4, Role.VCPU, 0) is Verdict.ORDINARY
    contract.deflate([3])
    assert contract.touch(3, Role.VCPU, 0) is Verdict.ORDINARY


@pytest.mark.parametrize("kind", ContractKind)
def test_the_host_may_read(kind: ContractKind) -> None:
    contract = Contract(Terms(kind=kind, floor_bytes=1 << 40))
    contract.inflate([3])
    assert contract.touch(3, Role.HOST_READER, 0) is Verdict.ORDINARY
    assert contract.ballooned == {3}


def test_cap_grants_down_to_its_floor_and_no_further() -> None:
    contract = _cap(floor_bytes=8 * PAGE_BYTES)
    verdicts = [contract.touch(page, Role.VCPU, 0) for page in range(4)]
    assert verdicts == [Verdict.GRANTED] * 2 + [Verdict.VIOLATION] * 2
    assert contract.ballooned_bytes == 8 * PAGE_BYTES


def test_a_floor_of_a_node_holds_there_alone() -> None:
    terms = Terms(kind=ContractKind.CAP, node_floors=((1, 3 * PAGE_BYTES),))
    contract = Contract(terms, node_of=lambda page: page % 2)
    contract.inflate(range(10))
    verdicts = [contract.touch(page, Role.VCPU, 0) for page in (1, 3, 5, 0, 2, 4, 6, 8)]
    assert verdicts == [*[Verdict.GRANTED] * 2, Verdict.VIOLATION, *[Verdict.GRANTED] * 5]
    assert contract.ballooned == {5, 7, 9}


def test_the_boot_grace_begins_with_a_reset_and_ends_at_its_first_limit() -> None:
    contract = _cap(floor_bytes=1 << 30, grace_ns=100, grace_bytes=3 * PAGE_BYTES)
    assert contract.touch(0, Role.VCPU, 0) is Verdict.VIOLATION
    contract.reset(1000)
    assert contract.ballooned_bytes == 0
    contract.inflate(range(10))
    assert contract.touch(0, Role.VCPU, 1099) is Verdict.GRANTED
    assert contract.touch(1, Role.VCPU, 1100) is Verdict.VIOLATION
    assert contract.touch(2, Role.VCPU, 1050) is Verdict.VIOLATION
    contract.reset(2000)
    contract.inflate(range(10))
    assert [contract.touch(page, Role.VCPU, 2001) for page in range(4)] == [
        *[Verdict.GRANTED] * 3,
        Verdict.VIOLATION,
    ]
