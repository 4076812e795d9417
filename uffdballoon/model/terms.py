# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest has promised."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TypeVar

from uffdballoon.errors import UsageError
from uffdballoon.model.ofnodes import refuse_twice
from uffdballoon.model.sizes import format_size


class ContractKind(enum.Enum):
    """How a page may leave the balloon.

    TOLD: by being deflated, and by nothing else. CAP: by being touched, too, as
    long as the floor holds (virtio 1.2, 5.5.6, without MUST_TELL_HOST).
    """

    TOLD = "told"
    CAP = "cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A contract as it was agreed.

    ``floor_bytes`` stay in the balloon under CAP. After a reset a boot grace lets
    a guest go below the floor: for ``grace_ns`` (0: not limited by time) and
    ``grace_bytes`` (0: not limited by bytes), whichever ends first; none when
    both are 0. ``node_floors`` are (NUMA node of the guest, bytes) that stay in the
    balloon of that node, besides the floor of all. ``limit_bytes`` is what the guest may have
    of its RAM, which is another word for the floor, once its RAM is known: see within(); None
    where the floor was given as such. With ``count_reported`` what free page reporting gives
    back is in the balloon.
    """

    kind: ContractKind = ContractKind.TOLD
    floor_bytes: int = 0
    grace_ns: int = 0
    grace_bytes: int = 0
    node_floors: tuple[tuple[int, int], ...] = ()
    limit_bytes: int | None = None
    count_reported: bool = False

    def within(self, ram_bytes: int) -> Terms:
        """Return terms whose floor is what the limit leaves of that much RAM.

        Raises UsageError for a limit that is more than that, or nothing.
        """
        if self.limit_bytes is None:
            return self
        if not 0 < self.limit_bytes <= ram_bytes:
            raise UsageError(
                f"{format_size(self.limit_bytes)} is no limit for this guest",
                why=f"it has {format_size(ram_bytes)} of RAM",
                hint="give what it may have of that",
            )
        return replace(self, floor_bytes=ram_bytes - self.limit_bytes)

    def floor_of(self, node: int | None) -> int:
        """Return what stays in the balloon of a node, in bytes; 0 where nothing was agreed."""
        return dict(self.node_floors).get(node, 0) if node is not None else 0


TOLD = Terms()
"""The contract that asks for nothing but to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsChange:
    """What is to be other terms: None for what stays, and node_floors of the nodes that change.

    A limit takes the place of the floor, and a floor that of the limit.
    """

    kind: ContractKind | None = None
    floor_bytes: int | None = None
    grace_ns: int | None = None
    grace_bytes: int | None = None
    node_floors: tuple[tuple[int, int], ...] = ()
    limit_bytes: int | None = None
    count_reported: bool | None = None

    def applied_to(self, terms: Terms) -> Terms:
        """Return the new terms; raise UsageError where this makes none.

        Under told nothing is left of floors and a boot grace. A node floor of 0 is none.
        """
        kind = self.kind or terms.kind
        limits = (self.floor_bytes, self.limit_bytes, self.grace_ns, self.grace_bytes)
        if kind is ContractKind.TOLD:
            if self.node_floors or self.count_reported or limits != (None,) * len(limits):
                raise UsageError(
                    "a floor, a limit, counted reports and a boot grace go with --contract cap",
                    why="under told a page leaves the balloon by being deflated, and by nothing "
                    "else",
                    hint="leave them out, or add --contract cap",
                )
            return TOLD
        if self.floor_bytes is not None and self.limit_bytes is not None:
            raise UsageError(
                "--floor and --limit do not go together",
                why="a limit is a floor by another name: what it leaves of the guest's RAM",
                hint="give one of them",
            )
        has_one = (self.floor_bytes, self.limit_bytes) != (None, None) or self.node_floors
        if terms.kind is ContractKind.TOLD and not has_one:
            raise UsageError(
                "--contract cap needs a floor or a limit",
                why="a floor is what has to stay in the balloon, a limit what the guest may have",
                hint="give --floor SIZE, such as --floor 512M, --limit SIZE, or "
                "--node-floor NODE=SIZE",
            )
        refuse_twice("--node-floor", self.node_floors)
        floors = dict(terms.node_floors) | dict(self.node_floors)
        return Terms(
            kind=kind,
            floor_bytes=_either(self.floor_bytes, terms.floor_bytes),
            grace_ns=_either(self.grace_ns, terms.grace_ns),
            grace_bytes=_either(self.grace_bytes, terms.grace_bytes),
            node_floors=tuple((node, size) for node, size in floors.items() if size),
            limit_bytes=_either(self.limit_bytes, terms.limit_bytes)
            if self.floor_bytes is None
            else None,
            count_reported=terms.count_reported
            if self.count_reported is None
            else self.count_reported,
        )


_Value = TypeVar("_Value", int, int | None)


def _either(new: int | None, before: _Value) -> int | _Value:
    return before if new is None else new
