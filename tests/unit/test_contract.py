# SPDX-License-Identifier: GPL-2.0-or-later
"""The C contract against the reference, on generated histories."""

from __future__ import annotations

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
_FIRST_PAGES = 40  # of node 0; the others are of node 1
_HISTORIES = 10_000
_MANY_HISTORIES = 100_000
_ROLES = tuple(Role)


def _hva(page: int) -> Hva:
    return Hva(_START + page * PAGE_BYTES)


def _block(name: str, first: int, last: int, node: int) -> RamBlock:
    size_bytes = (last - first) * PAGE_BYTES
    return RamBlock(
        name, _hva(first), size_bytes, PAGE_BYTES, Backing.ANON, shared=False, numa_node=node
    )


_BLOCKS = (_block("ram0", 0, _FIRST_PAGES, 0), _block("ram1", _FIRST_PAGES, _PAGES, 1))


def _node_of(page: int) -> int:
    return int(page >= _FIRST_PAGES)


def _spans(first: int, last: int) -> list[HvaRange]:
    """Return a range of pages by RAM blocks."""
    cut = min(max(first, _FIRST_PAGES), last)
    return [HvaRange(_hva(a), _hva(b)) for a, b in ((first, cut), (cut, last)) if a < b]


@dataclass(slots=True)
class _Both:
    """One history, told to the reference and to the C code."""

    reference: Contract
    native: NativeContract
    ledger: Ledger
    now_ns: int = 1

    @classmethod
    def of(cls, terms: Terms) -> _Both:
        ledger = Ledger(_BLOCKS)
        reference = Contract(terms, node_of=_node_of)
        return cls(reference, NativeContract(terms, ledger), ledger)

    def step(self, what: int, page: int, more: int) -> None:
        count = 1 + more % min(16, _PAGES - page)
        spans = _spans(page, page + count)
        self.now_ns += more
        match what:
            case 0 | 1:
                self.reference.inflate(range(page, page + count))
                for span in spans:
                    self.ledger.set(span)
            case 2:
                self.reference.deflate(range(page, page + count))
                for span in spans:
                    self.ledger.clear(span)
            case 3 if more % 4 == 0:
                self.reference.reset(self.now_ns)
                self.native.reset(self.now_ns)
            case _:
                self.touch(page, _ROLES[more % len(_ROLES)])

    def touch(self, page: int, role: Role) -> None:
        hva = _hva(page)
        verdict = self.native.judge(hva, role, self.now_ns)
        assert verdict is self.reference.touch(page, role, self.now_ns)
        if verdict is Verdict.GRANTED:
            self.ledger.clear(HvaRange.of(hva, PAGE_BYTES))

    def agree(self) -> bool:
        of_nodes = [self.ledger.node_bytes(node) for node in (0, 1)]
        return self.ledger.ballooned_bytes == self.reference.ballooned_bytes == sum(
            of_nodes
        ) and of_nodes[0] == self.reference.node_bytes(0)


def _terms(
    kind: int, floor_pages: int, grace_ns: int, grace_pages: int, node_floors: tuple[int, int]
) -> Terms:
    if kind % 3 == 0:
        return Terms()
    of_nodes = tuple((node, pages * PAGE_BYTES) for node, pages in enumerate(node_floors) if pages)
    return Terms(
        kind=ContractKind.CAP,
        floor_bytes=floor_pages * PAGE_BYTES,
        grace_ns=grace_ns,
        grace_bytes=grace_pages * PAGE_BYTES,
        node_floors=of_nodes,
    )


_HISTORY = st.binary(min_size=6 + 3 * 4, max_size=6 + 3 * 60)


@settings(max_examples=_HISTORIES, deadline=None, database=None)
@given(_HISTORY)
def test_the_fault_loop_judges_as_the_reference_does(history: bytes) -> None:
    _check_that_both_agree(history)


@pytest.mark.campaign
@settings(max_examples=_MANY_HISTORIES, deadline=None, database=None)
@given(_HISTORY)
def test_the_fault_loop_judges_many_histories_as_the_reference_does(history: bytes) -> None:
    _check_that_both_agree(history)


def _check_that_both_agree(history: bytes) -> None:
    nodes = (history[4] % 12, history[5] % 12)
    both = _Both.of(_terms(history[0], history[1] % 40, history[2] * 4, history[3] % 8, nodes))
    for at in range(6, len(history) - 2, 3):
        what, page, more = history[at : at + 3]
        both.step(what % 8, page % _PAGES, more)
    assert both.agree()


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
