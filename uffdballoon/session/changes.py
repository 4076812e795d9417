# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator takes from the guest and gives back to it, as jobs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from uffdballoon.errors import TargetBusyError, UsageError
from uffdballoon.model.job import Turn
from uffdballoon.model.place import Placed, place
from uffdballoon.model.records.changes import ChangeReport, StopTimes
from uffdballoon.model.records.spans import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.balloon.nodes import NodePart
    from uffdballoon.model.addresses import GpaRange, HvaRange
    from uffdballoon.model.granule import Granule
    from uffdballoon.model.job import Job
    from uffdballoon.session.attachment import Attachment
    from uffdballoon.session.resets import Resets

T = TypeVar("T")

_DEFLATED_BYTES = 256 << 20  # at once


class Changes:
    """Inflates and deflates of the operator's, and what they came to so far.

    ``stops_ns`` are the times for which zaps have stopped a thread of the target.
    """

    def __init__(self, attached: Attachment, resets: Resets) -> None:
        self._pid = attached.target.pid
        self._layout = attached.layout
        self._enforcer = attached.enforcer
        self._guard = attached.guard
        self._reclaimer = attached.reclaimer
        self._nodes = attached.nodes
        self._yielder = attached.yielder
        self._resets = resets
        self.inflated_bytes = 0
        self.deflated_bytes = 0
        self.stops_ns: list[int] = []

    def inflating(
        self, spans: Sequence[GpaRange], granule: Granule, *, guest_agreed: bool
    ) -> Job[ChangeReport]:
        """Take ranges from the guest, a part in a step.

        Raises UsageError unless the guest has agreed, and RangeError outside of
        its RAM, for less than a granule, or for what would break more huge pages
        than are allowed to be, and TargetBusyError while QEMU needs the memory's only userfaultfd
        itself; nothing is taken then. When the guest is reset in the middle, which
        empties the balloon, TargetBusyError.
        """
        what = spans[0] if len(spans) == 1 else f"memory in {len(spans)} ranges"
        _refuse_without_word(what, guest_agreed=guest_agreed)
        self._refuse_while_yielded()
        placed = yield from self._placing(spans, granule)
        self._guard.refuse_to_break([put.hva for put in placed])
        job = self._enforcer.inflate([(put.block, put.hva) for put in placed])
        done = yield from self._unless_reset(job)
        self.inflated_bytes += done.pages_bytes
        self.stops_ns.extend(done.zap.stops_ns)
        yield 0.0  # the last step was a zap
        self._reclaimer.work(settle_ns=0)  # what its rate does not allow comes later
        return ChangeReport(
            requested_bytes=sum(span.size_bytes for span in spans),
            done_bytes=done.pages_bytes,
            left_out=tuple(Span.of(piece) for put in placed for piece in put.left_out),
            ranges=tuple(Span.of(put.gpa) for put in placed),
            freed_bytes=done.resident_before_bytes,
            stopped_us=StopTimes(
                count=len(done.zap.stops_ns), max=max(done.zap.stops_ns, default=0) // 1000
            ),
        )

    def inflating_nodes(
        self, parts: Sequence[NodePart], granule: Granule, *, guest_agreed: bool
    ) -> Job[ChangeReport]:
        """Take whole granules of NUMA nodes of the guest, from their ends.

        Raises as inflating(), and RangeError when a node has fewer; nothing is taken then.
        """
        names = ", ".join(f"node {node}" for node, _ in parts)
        _refuse_without_word(f"memory of {names}", guest_agreed=guest_agreed)
        chosen = self._nodes.owned(parts, granule)
        return (yield from self.inflating(chosen, granule, guest_agreed=True))

    def deflating(self, spans: Sequence[GpaRange], granule: Granule) -> Job[ChangeReport]:
        """Give ranges back to the guest, a part in a step.

        What was not in the balloon stays as it is. Raises RangeError outside of its RAM.
        """
        placed = yield from self._placing(spans, granule)
        done_bytes = yield from self._giving_back([put.hva for put in placed])
        return ChangeReport(
            requested_bytes=sum(span.size_bytes for span in spans),
            done_bytes=done_bytes,
            left_out=tuple(Span.of(piece) for put in placed for piece in put.left_out),
            ranges=tuple(Span.of(put.gpa) for put in placed),
        )

    def deflating_all(self) -> Job[ChangeReport]:
        """Give back all that is in the balloon, whoever took it; the guest's driver is not asked.

        What came into it meanwhile counts as asked for.
        """
        segments = self._layout.segments
        done_bytes = yield from self._giving_back([segment.hva_range for segment in segments])
        return ChangeReport(
            requested_bytes=done_bytes,
            done_bytes=done_bytes,
            left_out=(),
            ranges=tuple(Span.of(segment.gpa_range) for segment in segments),
        )

    def deflating_nodes(self, parts: Sequence[NodePart], granule: Granule) -> Job[ChangeReport]:
        """Give whole granules of nodes back, what inflating_nodes() takes last first."""
        chosen = self._nodes.given_up(parts, granule)
        return (yield from self.deflating(chosen, granule))

    def _giving_back(self, hvas: Sequence[HvaRange]) -> Job[int]:
        turn = Turn()
        done_bytes = 0
        for hva in hvas:
            for part in hva.pieces(_DEFLATED_BYTES):
                part_bytes = self._enforcer.deflate(part)
                self.deflated_bytes += part_bytes
                done_bytes += part_bytes
                if turn.is_over():
                    yield 0.0
        return done_bytes

    def _placing(self, spans: Sequence[GpaRange], granule: Granule) -> Job[list[Placed]]:
        turn = Turn()
        placed = []
        for span in spans:
            placed.append(place(self._layout, span, granule))
            if turn.is_over():
                yield 0.0
        return placed

    def _refuse_while_yielded(self) -> None:
        if self._yielder.is_yielded:
            raise TargetBusyError(
                "nothing can be trapped now",
                why="the traps are lifted, by `yield` or for a background snapshot or postcopy "
                "migration, for which QEMU has a userfaultfd of its own",
                hint="ask again when `status` has `yielded` false",
                pid=self._pid,
            )

    def _unless_reset(self, job: Job[T]) -> Job[T]:
        """Step a job that takes memory; end it at a reset, from which on the guest owns all."""
        resets = self._resets.count
        with contextlib.closing(job):
            while True:
                try:
                    away_s = next(job)
                except StopIteration as end:
                    report: T = end.value
                    return report
                yield away_s
                if self._resets.count != resets:
                    raise TargetBusyError(
                        "the guest was reset in the middle of it",
                        why="a reset empties the balloon: all memory is the guest's again",
                        hint="ask again, once the guest has given the memory up anew",
                        pid=self._pid,
                    )


def _refuse_without_word(what: object, *, guest_agreed: bool) -> None:
    if not guest_agreed:
        raise UsageError(
            f"{what} was not taken",
            why="what is in it is lost to the guest, and nobody said that the guest agreed",
            hint="when the guest has given this range up, say so with --guest-agreed",
        )
