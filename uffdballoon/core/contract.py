# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract as the fault loop judges by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon._native import lib
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Role, Verdict

if TYPE_CHECKING:
    from uffdballoon._native import uffdb_contract

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


def terms_fields(terms: Terms) -> dict[str, object]:
    """Return the terms as the fields of struct uffdb_terms."""
    return {
        "kind": KINDS[terms.kind],
        "count_reported": terms.count_reported,
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
    def of(cls, contract: uffdb_contract) -> GraceState | None:
        """Read struct uffdb_contract; None when no grace is running."""
        terms, grace = contract.terms, contract.grace
        if not grace.runs:
            return None
        return cls(
            grace.until_ns if terms.grace_ns else None,
            grace.left_bytes if terms.grace_bytes else None,
        )
