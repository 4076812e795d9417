# SPDX-License-Identifier: GPL-2.0-or-later
"""What verbs that change something did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from uffdballoon.model.records.doc import doc
from uffdballoon.model.records.spans import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTimes:
    """Stops of a thread of the target."""

    count: Annotated[int, doc("how often it was stopped")] = 0
    max: Annotated[int, doc("the longest stop, us; 0 without one")] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeReport:
    """What an inflate or deflate did."""

    requested_bytes: Annotated[int, doc("bytes that were asked for")]
    done_bytes: Annotated[int, doc("bytes that are in another state than before")]
    freed_bytes: Annotated[int, doc("bytes that were resident and are not any more")] = 0
    left_out: Annotated[tuple[Span, ...], doc("what was rounded away")]
    ranges: Annotated[tuple[Span, ...], doc("what is now in the balloon, or the guest's")]
    stopped_us: Annotated[StopTimes, doc("stops that it took")] = StopTimes()

    @classmethod
    def total(cls, parts: Sequence[Self]) -> Self:
        """Add up what was done to several ranges."""
        return cls(
            requested_bytes=sum(part.requested_bytes for part in parts),
            done_bytes=sum(part.done_bytes for part in parts),
            freed_bytes=sum(part.freed_bytes for part in parts),
            left_out=tuple(piece for part in parts for piece in part.left_out),
            ranges=tuple(span for part in parts for span in part.ranges),
            stopped_us=StopTimes(
                count=sum(part.stopped_us.count for part in parts),
                max=max((part.stopped_us.max for part in parts), default=0),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InflatePreview:
    """What an inflate would do; nothing was done."""

    requested_bytes: Annotated[int, doc("bytes that were asked for")]
    would_do_bytes: Annotated[int, doc("bytes that would go into the balloon")]
    resident_bytes: Annotated[int, doc("bytes that are resident now, and would not be any more")]
    would_break_blocks: Annotated[
        int,
        doc(
            "blocks of 2 MiB more that would be ballooned in part, below zero: fewer; "
            "of ranges that took several requests, what each alone would break"
        ),
    ]
    left_out: Annotated[tuple[Span, ...], doc("what would be rounded away")]
    ranges: Annotated[tuple[Span, ...], doc("what would be in the balloon")]

    @classmethod
    def total(cls, parts: Sequence[Self]) -> Self:
        """Add up what would be done to several ranges."""
        return cls(
            requested_bytes=sum(part.requested_bytes for part in parts),
            would_do_bytes=sum(part.would_do_bytes for part in parts),
            resident_bytes=sum(part.resident_bytes for part in parts),
            would_break_blocks=sum(part.would_break_blocks for part in parts),
            left_out=tuple(piece for part in parts for piece in part.left_out),
            ranges=tuple(span for part in parts for span in part.ranges),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What `release` did."""

    released: Annotated[int, doc("touches that go on")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Yielded:
    """What `yield` did."""

    ballooned_bytes: Annotated[int, doc("in the balloon, and not trapped from now on")]
    for_ns: Annotated[int, doc("ns after which the traps are set again at the latest")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenUp:
    """What `take-up` did."""

    given_bytes: Annotated[int, doc("bytes that were touched meanwhile, and are the guest's")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detaching:
    """The answer of a manager that is about to end."""

    manager: Annotated[int, doc("pid of the manager: the guest is let go when it has ended")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error, as the control socket tells of it."""

    name: Annotated[str, doc("which error of uffdballoon.errors")] = "ControlError"
    what: Annotated[str, doc("what was not done")] = "the manager refused"
    why: Annotated[str, doc("why not; may be empty")] = ""
    hint: Annotated[str, doc("what to do about it; may be empty")] = ""
    pid: Annotated[int | None, doc("the process that it is about")] = None
    errno: Annotated[int | None, doc("errno of the call that failed")] = None
