# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract as the fault loop judges by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uffdballoon._native import ffi, lib
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Role, Verdict

if TYPE_CHECKING:
    from uffdballoon.kernel.ledger import Ledger

KINDS = {
    ContractKind.TOLD: lib.UFFDB_CONTRACT_TOLD,
    ContractKind.CAP: lib.UFFDB_CONTRACT_CAP,
}
ROLES = {
    Role.VCPU: lib.UFFDB_ROLE_VCPU,
    Role.HOST_READER: lib.UFFDB_ROLE_HOST_READER,
    Role.DEVICE_WRITER: lib.UFFDB_ROLE_DEVICE_WRITER,
}
VERDICTS = {
    lib.UFFDB_ORDINARY: Verdict.ORDINARY,
    lib.UFFDB_GRANTED: Verdict.GRANTED,
    lib.UFFDB_VIOLATION: Verdict.VIOLATION,
}


def contract_fields(terms: Terms) -> dict[str, object]:
    """Return the terms as the fields of struct uffdb_contract."""
    return {
        "kind": KINDS[terms.kind],
        "floor_bytes": terms.floor_bytes,
        "grace_ns": terms.grace_ns,
        "grace_bytes": terms.grace_bytes,
        "node_floors": [terms.floor_of(node) for node in range(lib.UFFDB_MAX_NODES)],
    }


@dataclass(frozen=True, slots=True)
class GraceState:
    """What is left of a boot grace; None for a limit that is not set."""

    until_ns: int | None
    left_bytes: int | None

    @classmethod
    def of(cls, contract: Any) -> GraceState | None:  # noqa: ANN401 - a cffi struct
        """Read struct uffdb_contract; None when no grace is running."""
        if not contract.in_grace:
            return None
        return cls(
            int(contract.grace_until_ns) if contract.grace_ns else None,
            int(contract.grace_left_bytes) if contract.grace_bytes else None,
        )


class NativeContract:
    """The C contract over a ledger, without a fault loop, to be held against the reference."""

    def __init__(self, terms: Terms, ledger: Ledger) -> None:
        self._contract = ffi.new("struct uffdb_contract *", contract_fields(terms))
        self._touch = ffi.new("struct uffdb_judged *")
        self._ledger = ledger

    def reset(self, now_ns: int) -> None:
        for block in self._ledger.blocks:
            self._ledger.clear(block.hva_range)
        lib.uffdb_contract_reset(self._contract, now_ns)

    def judge(self, hva: int, role: Role, now_ns: int) -> Verdict:
        """Judge a touch of the 4 KiB page at ``hva``; the ledger is left as it is."""
        touch = self._touch
        touch.ballooned_bytes = self._ledger.ballooned_bytes
        touch.touched_bytes = PAGE_BYTES if self._ledger.test(hva) else 0
        touch.now_ns = now_ns
        touch.role = ROLES[role]
        touch.node = self._ledger.node_at(hva)
        touch.node_ballooned_bytes = self._ledger.node_bytes(touch.node)
        return VERDICTS[lib.uffdb_contract_judge(self._contract, touch)]
