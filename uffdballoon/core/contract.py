# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract as the fault loop judges by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uffdballoon._native import lib
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Role, Verdict

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
