# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest has promised."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from uffdballoon.errors import UsageError
from uffdballoon.model.ofnodes import refuse_twice


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
    balloon of that node, besides the floor of all.
    """

    kind: ContractKind = ContractKind.TOLD
    floor_bytes: int = 0
    grace_ns: int = 0
    grace_bytes: int = 0
    node_floors: tuple[tuple[int, int], ...] = ()

    def floor_of(self, node: int | None) -> int:
        """Return what stays in the balloon of a node, in bytes; 0 where nothing was agreed."""
        return dict(self.node_floors).get(node, 0) if node is not None else 0


TOLD = Terms()
"""The contract that asks for nothing but to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsChange:
    """What is to be other terms: None for what stays, and node_floors of the nodes that change."""

    kind: ContractKind | None = None
    floor_bytes: int | None = None
    grace_ns: int | None = None
    grace_bytes: int | None = None
    node_floors: tuple[tuple[int, int], ...] = ()

    def applied_to(self, terms: Terms) -> Terms:
        """Return the new terms; raise UsageError where this makes none.

        Under told nothing is left of floors and a boot grace. A node floor of 0 is none.
        """
        kind = self.kind or terms.kind
        limits = (self.floor_bytes, self.grace_ns, self.grace_bytes)
        if kind is ContractKind.TOLD:
            if self.node_floors or limits != (None, None, None):
                raise UsageError(
                    "a floor and a boot grace go with --contract cap",
                    why="under told a page leaves the balloon by being deflated, and by nothing "
                    "else",
                    hint="leave them out, or add --contract cap",
                )
            return TOLD
        has_floor = self.floor_bytes is not None or self.node_floors
        if terms.kind is ContractKind.TOLD and not has_floor:
            raise UsageError(
                "--contract cap needs a floor",
                why="it is what has to stay in the balloon",
                hint="give --floor SIZE, such as --floor 512M, or --node-floor NODE=SIZE",
            )
        refuse_twice("--node-floor", self.node_floors)
        floors = dict(terms.node_floors) | dict(self.node_floors)
        return Terms(
            kind=kind,
            floor_bytes=_either(self.floor_bytes, terms.floor_bytes),
            grace_ns=_either(self.grace_ns, terms.grace_ns),
            grace_bytes=_either(self.grace_bytes, terms.grace_bytes),
            node_floors=tuple((node, size) for node, size in floors.items() if size),
        )


def _either(new: int | None, before: int) -> int:
    return before if new is None else new
