# SPDX-License-Identifier: GPL-2.0-or-later
"""What options say together: the contract's terms, and how much may be broken."""

from __future__ import annotations

from uffdballoon.errors import UsageError
from uffdballoon.model.fragmentation import HUGE_ORDER, KEEP_GUEST_PERFORMANCE, FragmentationLimit
from uffdballoon.model.ofnodes import refuse_twice
from uffdballoon.model.terms import ContractKind, TermsChange


def limit_of(
    min_order: int | None,
    max_broken: int | None,
    of_nodes: tuple[tuple[int, int], ...],
    *,
    keep_guest_performance: bool,
) -> FragmentationLimit | None:
    """Return how much may be broken, None without a limit; raise UsageError for a contradiction."""
    given = min_order is not None or max_broken is not None or bool(of_nodes)
    if keep_guest_performance and given:
        raise UsageError(
            "--keep-guest-performance goes without --min-order, --max-broken and --node-max-broken",
            why="it stands for --min-order 9 --max-broken 0",
            hint="give one or the other",
        )
    if min_order is not None and max_broken is None and not of_nodes:
        raise UsageError(
            "--min-order has no effect without --max-broken or --node-max-broken",
            why="it says what breaks a block, and not how many may be broken",
            hint="give one of them, too: --max-broken 0 is none at all",
        )
    refuse_twice("--node-max-broken", of_nodes)
    if keep_guest_performance:
        return KEEP_GUEST_PERFORMANCE
    if not given:
        return None
    return FragmentationLimit(
        min_order=HUGE_ORDER if min_order is None else min_order,
        max_broken_blocks=max_broken,
        node_max_broken=of_nodes,
    )


def terms_change(  # noqa: PLR0913 - one of each option
    contract: str | None,
    floor: int | None,
    limit: int | None,
    node_floors: tuple[tuple[int, int], ...],
    grace_ns: int | None,
    grace_bytes: int | None,
    *,
    count_reported: bool | None,
) -> TermsChange:
    """Return what the guest is to be held to, as far as it was given."""
    return TermsChange(
        kind=ContractKind(contract) if contract is not None else None,
        floor_bytes=floor,
        limit_bytes=limit,
        count_reported=count_reported,
        grace_ns=grace_ns,
        grace_bytes=grace_bytes,
        node_floors=node_floors,
    )
