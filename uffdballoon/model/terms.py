# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest has promised."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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
