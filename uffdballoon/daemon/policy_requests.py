# SPDX-License-Identifier: GPL-2.0-or-later
"""Which policy and terms a request asks for, read from its JSON; raises UsageError for nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uffdballoon.errors import UsageError
from uffdballoon.model.ofnodes import MOST_NODES
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.terms import ContractKind, TermsChange
from uffdballoon.session.policies import PolicyWish

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = 1 << 62  # more than any address space, or life


def wish_of(message: Mapping[str, Any]) -> PolicyWish:
    """Read what is to be in force: what is not there, or null, stays as it is."""
    policy, contract = message.get("policy"), message.get("contract")
    if policy is not None and not isinstance(policy, str):
        raise UsageError("that is no policy", why="a policy is a ladder, written as one string")
    return PolicyWish(
        policy=parse_policy(policy) if policy is not None else None,
        terms=TermsChange(
            kind=_contract_of(contract) if contract is not None else None,
            floor_bytes=_number_of(message, "floor_bytes"),
            count_reported=_flag_of(message, "count_reported"),
            limit_bytes=_number_of(message, "limit_bytes"),
            grace_ns=_number_of(message, "boot_grace_ns"),
            grace_bytes=_number_of(message, "boot_grace_bytes"),
            node_floors=_node_floors_of(message),
        ),
        without_monitor=message.get("without_monitor") is True,
    )


def _contract_of(word: object) -> ContractKind:
    try:
        return ContractKind(word)
    except ValueError as error:
        raise UsageError(f"{word!r} is no contract", why="contracts are told and cap") from error


def _flag_of(message: Mapping[str, Any], key: str) -> bool | None:
    flag = message.get(key)
    if flag is not None and not isinstance(flag, bool):
        raise UsageError(f"that is no {key}", why="it is true or false")
    return flag


def _number_of(message: Mapping[str, Any], key: str) -> int | None:
    number = message.get(key)
    if number is not None and not _is_whole(number, _MOST):
        raise UsageError(f"that is no {key}", why="it is a whole number, 0 or more")
    return number


def _node_floors_of(message: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    rows = message.get("node_floors") or []
    if not isinstance(rows, list) or not all(map(_is_node_floor, rows)):
        raise UsageError(
            "those are no floors of nodes",
            why=f"they are pairs of a node, below {MOST_NODES}, and bytes",
        )
    return tuple((node, floor_bytes) for node, floor_bytes in rows)


def _is_node_floor(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 2:  # noqa: PLR2004 - a pair
        return False
    node, floor_bytes = row
    return _is_whole(node, MOST_NODES - 1) and _is_whole(floor_bytes, _MOST)


def _is_whole(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
