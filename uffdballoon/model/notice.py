# SPDX-License-Identifier: GPL-2.0-or-later
"""Event lines that tell of something else than a touch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypedDict, Unpack

from msgspec import UNSET

from uffdballoon.model.records.events import EventKind, Notice

if TYPE_CHECKING:
    from uffdballoon.model.records.policy import PolicyInForce


class _More(TypedDict, total=False):
    """What only some notices have, see Notice."""

    size: int
    actual_bytes: int
    node: int | None
    broken_blocks: int
    limit_blocks: int
    ram_change_bytes: int
    before: PolicyInForce
    after: PolicyInForce
    count: int


def notice(kind: EventKind, why: str = "", **more: Unpack[_More]) -> Notice:
    """Tell of it as of now; ``why`` is for a person."""
    return Notice(time_ns=time.time_ns(), kind=kind, why=why or UNSET, **more)
