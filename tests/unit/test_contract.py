# SPDX-License-Identifier: GPL-2.0-or-later
"""The C contract against the reference, on generated histories."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdballoon.contract.contract import Contract
from uffdballoon.kernel.contract import NativeContract
from uffdballoon.kernel.ledger import Ledger
from uffdballoon.model.addresses import PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.ram import Backing, RamBlock
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Role, Verdict

_PAGES = 96  # more than a word of the ledger
_START = Hva(0x7F0000000000)
_BLOCK = RamBlock("ram", _START, _PAGES * PAGE_BYTES, PAGE_BYTES, Backing.ANON, shared=False)
_HISTORIES = int(os.environ.get("UFFDBALLOON_HISTORIES", "100000"))
_ROLES = tuple(Role)


@dataclass(slots=True)
class _Both:
    """One history, told to the reference and to the C code."""

    reference: Contract
    native: NativeContract
    ledger: Ledger
    now_ns: int = 1

    @classmethod
    def of(cls, terms: Terms) -> _Both:
        ledger = Ledger([_BLOCK])
        return cls(Contract(terms), NativeContract(terms, ledger), ledger)

    def step(self, what: int, page: int, more: int) -> None:
        count = 1 + more % min(16, _PAGES - page)
        span = HvaRange.of(Hva(_START + page * PAGE_BYTES), count * PAGE_BYTES)
        self.now_ns += more
        match what:
            case 0 | 1:
                self.reference.inflate(range(page, page + count))
                self.ledger.set(span)
            case 2:
                self.reference.deflate(range(page, page + count))
                self.ledger.clear(span)
            case 3 if more % 4 == 0:
                self.reference.reset(self.now_ns)
                self.native.reset(self.now_ns)
            case _:
                self.touch(page, _ROLES[more % len(_ROLES)])

    def touch(self, page: int, role: Role) -> None:
        hva = _START + page * PAGE_BYTES
        verdict = self.native.judge(hva, role, self.now_ns)
        assert verdict is self.reference.touch(page, role, self.now_ns)
        if verdict is Verdict.GRANTED:
            self.ledger.clear(HvaRange.of(Hva(hva), PAGE_BYTES))

    def agree(self) -> bool:
        return self.ledger.ballooned_bytes == self.reference.ballooned_bytes


def _terms(kind: int, floor_pages: int, grace_ns: int, grace_pages: int) -> Terms:
    if kind % 3 == 0:
        return Terms()
    return Terms(
        kind=ContractKind.CAP,
        floor_bytes=floor_pages * PAGE_BYTES,
        grace_ns=grace_ns,
        grace_bytes=grace_pages * PAGE_BYTES,
    )


@settings(max_examples=_HISTORIES, deadline=None, database=None)
@given(st.binary(min_size=4 + 3 * 4, max_size=4 + 3 * 60))
def test_the_fault_loop_judges_as_the_reference_does(history: bytes) -> None:
    both = _Both.of(_terms(history[0], history[1] % 40, history[2] * 4, history[3] % 8))
    for at in range(4, len(history) - 2, 3):
        what, page, more = history[at : at + 3]
        both.step(what % 8, page % _PAGES, more)
    assert both.agree()


def _cap(**terms: int) -> Contract:
    contract = Contract(Terms(kind=ContractKind.CAP, **terms))
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
