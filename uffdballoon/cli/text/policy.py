# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is held to, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.durations import format_duration
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.records.policy import PolicyChange


def policy_rows(change: PolicyChange) -> Iterator[tuple[str, str]]:
    """Yield what is in force as (name, value) rows."""
    now = change.after
    yield "policy", now.policy
    yield "contract", now.contract.value
    if now.contract is ContractKind.CAP:
        yield "floor", format_size(now.floor_bytes)
    if now.limit_bytes is not None:
        yield "limit", format_size(now.limit_bytes)
    if now.count_reported:
        yield "reported free", "is in the balloon"
    for node, floor_bytes in now.node_floors.items():
        yield f"floor of node {node}", format_size(floor_bytes)
    if now.contract is ContractKind.CAP:
        yield "in the balloon", "less than the floor" if change.below_floor else "enough"
    if now.boot_grace_ns:
        yield "boot grace", format_duration(now.boot_grace_ns)
    if now.boot_grace_bytes:
        yield "boot grace", format_size(now.boot_grace_bytes)
    if now.without_monitor:
        yield "without a monitor", "what can hurt is taken all the same"


def change_lines(change: PolicyChange) -> Iterator[str]:
    """Yield what a change did, a sentence a line."""
    if change.after == change.before:
        yield f"nothing to change; in force is {change.after}"
        return
    yield f"in force is {change.after}; it was {change.before}"
    if change.went_on:
        yield f"{change.went_on} touch(es) that were held are no longer"
    if change.below_floor:
        yield (
            "less than the floor is in the balloon: nothing is taken, and a touch of what is in "
            "it is a violation"
        )
