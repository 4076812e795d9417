# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is held to: the policy and the contract's terms, and a change of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Self

from uffdballoon.model.durations import format_duration
from uffdballoon.model.policy import Policy, parse_policy
from uffdballoon.model.records.doc import doc
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInForce:
    """What is done about violations, and what the guest has promised."""

    policy: Annotated[str, doc("the ladder, as `attach --policy` takes it")]
    contract: Annotated[ContractKind, doc("how a page may leave the balloon")]
    floor_bytes: Annotated[int, doc("bytes that are to stay in the balloon; 0: no floor")]
    limit_bytes: Annotated[
        int | None,
        doc("bytes of its RAM that the guest may have; null: the floor was given as such"),
    ]
    count_reported: Annotated[bool, doc("whether what is reported free is in the balloon")]
    node_floors: Annotated[dict[int, int], doc("floors of NUMA nodes of the guest, by number")]
    boot_grace_ns: Annotated[int, doc("time of a boot grace; 0: not limited by time")]
    boot_grace_bytes: Annotated[int, doc("bytes of one; 0: not limited by bytes; both 0: none")]
    without_monitor: Annotated[bool, doc("whether what can hurt was taken without a monitor")]

    @classmethod
    def of(cls, policy: Policy, terms: Terms, *, without_monitor: bool) -> Self:
        return cls(
            policy=str(policy),
            contract=terms.kind,
            floor_bytes=terms.floor_bytes,
            limit_bytes=terms.limit_bytes,
            count_reported=terms.count_reported,
            node_floors=dict(sorted(terms.node_floors)),
            boot_grace_ns=terms.grace_ns,
            boot_grace_bytes=terms.grace_bytes,
            without_monitor=without_monitor,
        )

    @property
    def ladder(self) -> Policy:
        """The policy; raises UsageError for a record that has none."""
        return parse_policy(self.policy)

    @property
    def terms(self) -> Terms:
        return Terms(
            kind=self.contract,
            floor_bytes=self.floor_bytes,
            grace_ns=self.boot_grace_ns,
            grace_bytes=self.boot_grace_bytes,
            node_floors=tuple(self.node_floors.items()),
            limit_bytes=self.limit_bytes,
            count_reported=self.count_reported,
        )

    def __str__(self) -> str:
        promises = ", ".join(self._promises())
        return f"{self.policy} under {self.contract.value}" + (f" ({promises})" if promises else "")

    def _promises(self) -> Iterator[str]:
        if self.contract is ContractKind.CAP:
            yield f"floor {format_size(self.floor_bytes)}"
        if self.limit_bytes is not None:
            yield f"by limit {format_size(self.limit_bytes)}"
        if self.count_reported:
            yield "with what is reported free"
        for node, floor_bytes in self.node_floors.items():
            yield f"of node {node} {format_size(floor_bytes)}"
        if self.boot_grace_ns:
            yield f"boot grace {format_duration(self.boot_grace_ns)}"
        if self.boot_grace_bytes:
            yield f"boot grace {format_size(self.boot_grace_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """What `policy` did; without anything to change, what is in force."""

    before: Annotated[PolicyInForce, doc("what was in force")]
    after: Annotated[PolicyInForce, doc("what is; the same when nothing was to be changed")]
    went_on: Annotated[int, doc("touches that were held, and are no longer")]
    below_floor: Annotated[bool, doc("whether less is in the balloon than a floor asks for")]
