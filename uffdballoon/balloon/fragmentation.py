# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold the guest's driver to a limit of broken huge pages, by stopping its inflate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from uffdballoon.core.ledger import Ledger
from uffdballoon.errors import RangeError
from uffdballoon.model.notice import notice
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.records.memory import Fragmentation
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.blockmap import Tally
    from uffdballoon.model.fragmentation import FragmentationLimit
    from uffdballoon.model.ram import RamBlock
    from uffdballoon.model.records.events import Notice

_LOOK_S = 0.02
_UNDER_WAY = 8
"""Blocks over the limit that an inflate of whole blocks may be in the middle of."""
_SETTLED_S = 0.05
_SETTLED_PAGES = 1024
"""A block that was the same for so long, and while so many other pages came, stays broken."""
_QUIET_S = 1.0
"""Without a page for so long: what is broken now stays broken."""
_STANDS_S = 0.5
"""Between two looks at a driver that gives nothing up; the balloon's bell rings before."""
_AGAIN_S = 1.0
"""After a stop: what was under way is let in, and the driver told again only then."""
_TELL_AGAIN_S = 5.0
_FIRST_STEP_BYTES = 2 << 20
_LARGEST_STEP_BYTES = 32 << 20
"""A step that broke nothing is followed by one of twice its size."""
_COST_SHARE = 20
"""A look is not taken before so many times what the last one cost have passed."""


@dataclass(frozen=True, slots=True)
class _Part:
    """RAM blocks that share a limit: all, or those of a NUMA node of the guest."""

    node: int | None
    blocks: tuple[RamBlock, ...]
    max_broken_blocks: int
    min_order: int

    def count(self, ledger: Ledger, before: Ledger | None = None) -> int:
        return _count(self.blocks, self.min_order, ledger, before)

    def excess(self, ledger: Ledger, before: Ledger | None = None) -> int:
        """Return how many more are broken than may be; at most 0 when none is too many."""
        return self.count(ledger, before) - self.max_broken_blocks

    @property
    def name(self) -> str:
        return "" if self.node is None else f" of node {self.node}"


def _count(
    blocks: Iterable[RamBlock], min_order: int, ledger: Ledger, before: Ledger | None = None
) -> int:
    """Count broken blocks; pages of hugetlbfs come and go whole."""
    return sum(
        ledger.fine_blocks(block.hva_range, min_order, before)
        for block in blocks
        if block.backing is not Backing.HUGETLBFS
    )


def _parts(limit: FragmentationLimit | None, blocks: Sequence[RamBlock]) -> tuple[_Part, ...]:
    if limit is None:
        return ()
    all_of_it = limit.max_broken_blocks
    of_all = () if all_of_it is None else (_Part(None, tuple(blocks), all_of_it, limit.min_order),)
    return of_all + tuple(
        _Part(node, tuple(b for b in blocks if b.numa_node == node), most, limit.min_order)
        for node, most in limit.node_max_broken
    )


class NodeLimit(NamedTuple):
    """How many blocks of a node may be broken, and how many count as that; None: no limit."""

    limit_blocks: int | None
    counted_blocks: int | None


class GuestDriver(Protocol):
    """The guest's balloon driver, as far as it can be told what to do."""

    def stop_balloon(self, why: str) -> int | None:
        """Have the balloon stay as it is; return what is left to the guest, in bytes.

        None when it cannot be told now.
        """

    @property
    def is_stepping(self) -> bool:
        """Whether it is to be asked for more than it was asked for yet."""

    def is_at_step(self) -> bool:
        """Tell whether it has come as far as it was asked to, by what it said last."""

    def step_balloon(self, step_bytes: int) -> bool:
        """Ask it for that much more, but for no more than is wanted; False when that failed."""


class FragmentationGuard:
    """Counts broken blocks while the guest gives memory up; without a limit it only counts.

    With a limit the driver is asked in steps, so that it overshoots by one of them at most.
    """

    def __init__(
        self,
        loop: FaultLoop,
        ledger: Ledger,
        limit: FragmentationLimit | None,
        driver: GuestDriver,
    ) -> None:
        self._loop = loop
        self._ledger = ledger
        self._limit = limit
        self._parts = _parts(limit, ledger.blocks)
        self._driver = driver
        self._is_at_step = False
        self._step_bytes = _FIRST_STEP_BYTES
        self._step_counted = 0
        self._before = Ledger(ledger.blocks)
        self._copied_s = self._moved_s = self._next_s = 0.0
        self._copied_pages = self._seen_pages = loop.stats().observed_inflated
        self._judged_pages = self._seen_pages
        self._stopped_at_bytes: int | None = None
        self._told_s = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit to hold anybody to."""
        return bool(self._parts)

    def look(self) -> list[Notice]:
        """Stop the inflate when it has broken too much; return the event lines.

        To be called again within due_s().
        """
        if not self._parts:
            return []
        pages, now_s = self._loop.stats().observed_inflated, time.monotonic()
        if pages != self._seen_pages:
            self._seen_pages, self._moved_s = pages, now_s
        if now_s < self._next_s or not (self.is_pending or self._is_at_step):
            return []
        too_many = self._are_too_many_for_good(now_s)
        cost_s = time.monotonic() - now_s
        self._next_s = now_s + cost_s * _COST_SHARE
        if too_many:
            return self._stop_it(now_s)
        if self._is_at_step:
            self._take_step()
        return []

    def note_step(self) -> None:
        """See whether the driver waits to be asked for more, for the next look()."""
        self._is_at_step = self._driver.is_at_step()

    def due_s(self) -> float | None:
        """Return seconds until look() is to be called; None: when something is given up."""
        if not self._parts or not (self.is_pending or self._driver.is_stepping):
            return None
        now_s = time.monotonic()
        moves = self.is_pending or self._is_at_step or now_s - self._moved_s < _QUIET_S
        return max(_LOOK_S if moves else _STANDS_S, self._next_s - now_s)

    def refuse_to_break(self, spans: Sequence[HvaRange]) -> None:
        """Raise RangeError when taking these from the guest would break more than allowed."""
        if not self._parts:
            return
        after = Ledger(self._ledger.blocks)
        self._ledger.copy_to(after)
        for span in spans:
            after.set(span)
        for part in self._parts:
            would_be, now = part.count(after), part.count(self._ledger)
            if would_be <= part.max_broken_blocks or would_be <= now:
                continue
            raise RangeError(
                f"nothing was taken: it would break {would_be - now} more block(s) of 2 MiB"
                f"{part.name}",
                why=f"{part.max_broken_blocks} may be broken, and {now} are",
                hint="give whole blocks, such as with --granule thp, or attach with another limit",
            )

    def obstacle(self) -> str:
        """Say why no inflate is asked for, because too much is broken; empty when it may be."""
        if not self._parts:
            return ""
        part = self._worst()
        broken = part.count(self._ledger)
        return _why(part, broken) if broken > part.max_broken_blocks else ""

    def first_step(self) -> int | None:
        """Return how much the driver is to be asked for at first, in bytes; None: all of it."""
        if not self._parts:
            return None
        self._step_bytes, self._step_counted = _FIRST_STEP_BYTES, self._counted()
        return self._step_bytes

    def go_on(self) -> None:
        """Forget that the inflate was stopped: the guest is asked for something else."""
        self._stopped_at_bytes = None

    def report(self, tally: Tally) -> Fragmentation:
        """Return the limit, and what ``tally`` of all RAM has broken, for ``status``."""
        limit = self._limit
        return Fragmentation(
            limit_blocks=None if limit is None else limit.max_broken_blocks,
            min_order=None if limit is None else limit.min_order,
            counted_blocks=tally.broken if limit is None else self._count_all(limit),
            broken_blocks=tally.broken,
            whole_blocks=tally.whole,
            untouched_blocks=tally.untouched,
            stopped_at_bytes=self._stopped_at_bytes,
        )

    def limit_of(self, node: int | None) -> NodeLimit:
        """Return the limit of a node, and what counts as broken of it."""
        parts = (part for part in self._parts if part.node == node and node is not None)
        part = next(parts, None)
        if part is None:
            return NodeLimit(None, None)
        return NodeLimit(part.max_broken_blocks, part.count(self._ledger))

    @property
    def is_pending(self) -> bool:
        """Whether something was given up that was not looked at for good."""
        return self._seen_pages != self._judged_pages

    def _worst(self) -> _Part:
        """Return the part that has the most blocks above its limit."""
        return max(self._parts, key=lambda part: part.excess(self._ledger))

    def _are_too_many_for_good(self, now_s: float) -> bool:
        """Say whether too many are broken, without those the inflate may still be at work on."""
        excess = {part: part.excess(self._ledger) for part in self._parts}
        over = [part for part in self._parts if excess[part] > 0]
        # At a step's end it may be in the middle of a block, which the next one fills.
        quiet = not self._is_at_step and now_s - self._moved_s >= _QUIET_S
        if quiet or max(excess.values()) > _UNDER_WAY:
            self._judged_pages = self._seen_pages if quiet else self._judged_pages
            return bool(over)
        grown = self._seen_pages - self._copied_pages
        if grown < _SETTLED_PAGES or now_s - self._copied_s < _SETTLED_S:
            return False
        settled = any(part.excess(self._ledger, self._before) > 0 for part in over)
        self._ledger.copy_to(self._before)
        self._copied_s, self._copied_pages = now_s, self._seen_pages
        return settled

    def _counted(self) -> int:
        return sum(part.count(self._ledger) for part in self._parts)

    def _take_step(self) -> None:
        """Ask for more; for little after a step that broke something."""
        counted = self._counted()
        larger = min(2 * self._step_bytes, _LARGEST_STEP_BYTES)
        step_bytes = larger if counted <= self._step_counted else _FIRST_STEP_BYTES
        if self._driver.step_balloon(step_bytes):
            self._step_bytes, self._step_counted = step_bytes, counted
            self._is_at_step = False

    def _stop_it(self, now_s: float) -> list[Notice]:
        self._next_s = max(self._next_s, now_s + _AGAIN_S)
        part = self._worst()
        broken = part.count(self._ledger)
        why = _why(part, broken)
        reached = self._driver.stop_balloon(why)
        if reached is None:
            self._judged_pages = -1  # tried again
            return []
        self._stopped_at_bytes = reached
        if not self.is_pending and now_s - self._told_s < _TELL_AGAIN_S:
            return []  # it has stopped; what was under way came in
        self._told_s = now_s
        return [
            notice(
                EventKind.FRAGMENTATION_LIMIT,
                f"{why}; stopped with {format_size(reached)} left to the guest",
                size=self._ledger.ballooned_bytes,
                actual_bytes=reached,
                node=part.node,
                broken_blocks=broken,
                limit_blocks=part.max_broken_blocks,
            )
        ]

    def _count_all(self, limit: FragmentationLimit) -> int:
        return _count(self._ledger.blocks, limit.min_order, self._ledger)


def _why(part: _Part, broken: int) -> str:
    return (
        f"its balloon has broken {broken} block(s) of 2 MiB{part.name} by pieces smaller than "
        f"order {part.min_order}, and {part.max_broken_blocks} are allowed"
    )
