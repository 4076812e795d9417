# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's balloon: what it was asked for, and what the guest says of it."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from uffdballoon.model.records.doc import doc
from uffdballoon.model.records.policy import PolicyChange
from uffdballoon.model.records.spans import Span


class ProgressState(enum.Enum):
    """How far a balloon is from the size that its driver was asked for."""

    MOVING = "moving"
    REACHED = "reached"
    STOPPED = "stopped"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverProgress:
    """How far the guest's driver has come, as QEMU tells of it."""

    target_bytes: Annotated[int, doc("bytes that the guest shall have left")]
    before_bytes: Annotated[int | None, doc("bytes it had left before; null: nobody can say")]
    actual_bytes: Annotated[int | None, doc("bytes it has left now; null: nobody can say")]
    state: Annotated[ProgressState, doc("stopped: by us; stalled: it moved no more for 5 s")]
    why: Annotated[str, doc("what stands in the way; empty when nothing does")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BalloonProgress(DriverProgress):
    """How far the guest has come to what it was asked for last."""

    ballooned_bytes: Annotated[int, doc("bytes that are in the balloon by the ledger")]
    node_bytes: Annotated[
        dict[int, int],
        doc(
            "by NUMA node of the guest, bytes that came into its balloon since the driver was "
            "asked, by the ledger; below zero: went"
        ),
    ]

    @classmethod
    def of(cls, told: DriverProgress, ballooned_bytes: int, node_bytes: Mapping[int, int]) -> Self:
        return cls(
            target_bytes=told.target_bytes,
            before_bytes=told.before_bytes,
            actual_bytes=told.actual_bytes,
            state=told.state,
            why=told.why,
            ballooned_bytes=ballooned_bytes,
            node_bytes=dict(node_bytes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """What `limit` did."""

    policy: Annotated[PolicyChange, doc("the terms before and after")]
    driver: Annotated[
        BalloonProgress | None,
        doc("what the guest's driver was asked for; null: there is none that could be asked"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BalloonAccount:
    """The ledger beside what the guest says; null where nobody can be asked."""

    actual_bytes: Annotated[int | None, doc("bytes that the guest has left by its own account")]
    unaccounted_bytes: Annotated[
        int | None, doc("bytes in its balloon that the ledger does not know; below zero: too many")
    ]
    asked_bytes: Annotated[
        int | None, doc("bytes that it was asked to keep last; null: nothing was asked for")
    ] = None
    why: Annotated[str, doc("why these differ; empty: they agree, or nobody can say")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Where the ledger and the kernel, or the guest, disagree."""

    ballooned_bytes: Annotated[int, doc("bytes that are in the balloon by the ledger")]
    actual_bytes: Annotated[
        int | None, doc("bytes that the guest has left by its own account; null: nobody can say")
    ]
    unaccounted_bytes: Annotated[
        int | None, doc("bytes in its balloon that the ledger does not know; null: nobody can say")
    ]
    disagreements: Annotated[tuple[Span, ...], doc("ballooned ranges that hold memory: none")]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """What the guest's driver tells of the guest's memory."""

    age_s: Annotated[float | None, doc("s since it was told; null: it has told nothing yet")]
    values: Annotated[
        dict[str, int],
        doc("virtio 1.2, 5.5.6.4, by QEMU's names: bytes, but for faults and other counts"),
    ]
