# SPDX-License-Identifier: GPL-2.0-or-later
"""When an inflate is stopped because it breaks too many huge pages, in a time that is made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tests.support.guest_ram import huge_page_of, pages_of, ram_block
from uffdballoon.balloon import fragmentation
from uffdballoon.balloon.fragmentation import FragmentationGuard, NodeLimit
from uffdballoon.core.ledger import Ledger
from uffdballoon.errors import RangeError
from uffdballoon.model.blockmap import Tally
from uffdballoon.model.fragmentation import KEEP_GUEST_PERFORMANCE, FragmentationLimit
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.model.ram import RamBlock
    from uffdballoon.model.records.events import Notice

LEFT = 1 << 30
PAGES = 512
"""Of 4 KiB, in a block of 2 MiB."""


class _Guest:
    """A ledger that is filled as an inflate does it, and a guard over it.

    ``left`` is what the monitor answers a stop with, in bytes; None where it does not.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        limit: FragmentationLimit | None,
        *blocks: RamBlock,
    ) -> None:
        self.blocks = blocks or (ram_block(huge_pages=64),)
        self.ledger = Ledger(self.blocks)
        self.now_s = 1000.0
        self.left: int | None = LEFT
        self.stops: list[str] = []
        self._seen = 0
        patch.setattr(fragmentation, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        loop = SimpleNamespace(stats=lambda: SimpleNamespace(observed_inflated=self._seen))
        self.is_stepping = self.at_step = False
        self.steps: list[int] = []
        self.guard = FragmentationGuard(cast("FaultLoop", loop), self.ledger, limit, self)

    def stop_balloon(self, why: str) -> int | None:
        self.stops.append(why)
        self.is_stepping = self.at_step = False
        return self.left

    def is_at_step(self) -> bool:
        return self.at_step

    def step_balloon(self, step_bytes: int) -> bool:
        self.steps.append(step_bytes >> 20)
        self.at_step = self.left is None
        return self.left is not None

    def comes_to_step(self, *, after_s: float = 0.1) -> list[Notice]:
        """Have it come as far as it was asked to, and look at that."""
        self.is_stepping = self.at_step = True
        self.guard.note_step()
        return self.look(after_s=after_s)

    def gives(self, number: int, pages: int, *, first: int = 0, block: int = 0) -> None:
        """Have it give up pages of a block of 2 MiB."""
        self._seen += self.ledger.set(
            pages_of(self.blocks[block], PAGES * number + first, pages),
        )

    def breaks(self, count: int, *, first: int = 0, block: int = 0) -> None:
        for number in range(first, first + count):
            self.gives(number, 1, block=block)

    def look(self, *, after_s: float = 0.1) -> list[Notice]:
        self.now_s += after_s
        return self.guard.look()


def test_without_a_limit_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, None)
    guest.breaks(60)
    assert (guest.look(after_s=10), guest.guard.due_s(), guest.stops) == ([], None, [])


def test_far_beyond_the_limit_it_is_stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, FragmentationLimit(max_broken_blocks=4))
    guest.breaks(13)
    (told,) = guest.look()
    assert (told.kind, told.broken_blocks, told.limit_blocks, told.node) == (
        EventKind.FRAGMENTATION_LIMIT,
        13,
        4,
        None,
    )
    assert (told.actual_bytes, told.size) == (LEFT, 13 * 4096)
    assert told.why == (
        "its balloon has broken 13 block(s) of 2 MiB by pieces smaller than order 9, and 4 are "
        "allowed; stopped with 1 GiB left to the guest"
    )


@pytest.mark.parametrize("over", [1, 8])
def test_what_it_may_be_at_work_on_is_let_be_until_it_is_quiet(
    over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    guest.breaks(over)
    assert guest.look() == []
    assert guest.look(after_s=0.8) == []
    assert guest.stops == []
    assert len(guest.look(after_s=0.3)) == 1


def test_a_block_that_is_filled_in_time_was_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    guest.gives(3, 200)
    assert guest.look() == []
    guest.gives(3, PAGES - 200, first=200)
    assert guest.look() == []
    assert guest.look(after_s=2) == []
    assert (guest.stops, guest.guard.due_s()) == ([], None)


def test_a_block_that_stays_as_it_was_while_others_come_is_broken_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    guest.breaks(1)
    for number in range(1, 3):
        guest.gives(number, PAGES)
    assert guest.look() == [], "this is the first picture"
    for number in range(3, 6):
        guest.gives(number, PAGES)
    assert len(guest.look()) == 1


def test_blocks_that_go_on_filling_are_not_taken_for_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    for number in range(40):
        guest.gives(number, PAGES - 7, first=7)  # its first pages come with the next one
        if number:
            guest.gives(number - 1, 7)
        assert guest.look(after_s=0.06) == []
    assert guest.stops == []


def test_what_is_within_the_limit_is_looked_at_until_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, FragmentationLimit(max_broken_blocks=4))
    assert guest.guard.due_s() is None
    guest.breaks(4)
    guest.look()
    assert guest.guard.due_s() is not None
    assert guest.look(after_s=1.5) == []
    assert (guest.guard.due_s(), guest.stops) == (None, [])


def test_a_monitor_that_cannot_be_asked_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    guest.left = None
    guest.breaks(20)
    assert guest.look() == []
    assert guest.guard.due_s() == pytest.approx(1.0)
    guest.left = LEFT
    assert guest.look(after_s=0.5) == [], "the driver is not told more often"
    assert len(guest.look(after_s=0.6)) == 1
    assert len(guest.stops) == 2


def test_a_driver_that_goes_on_is_stopped_and_told_of_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    guest.breaks(20)
    assert len(guest.look()) == 1
    guest.breaks(2, first=20)
    assert guest.look(after_s=0.5) == [], "what was under way is let in"
    assert len(guest.look(after_s=0.6)) == 1
    assert len(guest.stops) == 2


def test_a_driver_that_has_stopped_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    guest.breaks(20)
    assert len(guest.look()) == 1
    assert guest.look(after_s=1.5) == []
    assert len(guest.stops) == 2, "its target is what came in meanwhile, too"
    assert guest.guard.due_s() is None


def test_order_and_hugetlbfs_decide_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = FragmentationLimit(min_order=4, max_broken_blocks=0)
    guest = _Guest(
        monkeypatch, limit, ram_block(0), ram_block(1, backing=Backing.HUGETLBFS, huge_pages=32)
    )
    for number in range(16):
        guest.gives(number, 16, first=32)  # an aligned piece of order 4
    for number in range(32):
        guest.gives(number, 1, block=1)
    assert (guest.look(), guest.look(after_s=2), guest.stops) == ([], [], [])
    guest.gives(0, 8)
    assert len(guest.look(after_s=2)) + len(guest.look(after_s=2)) == 1


def test_a_limit_of_a_node_counts_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = FragmentationLimit(max_broken_blocks=None, node_max_broken=((1, 2),))
    guest = _Guest(monkeypatch, limit, ram_block(0), ram_block(1, node=1))
    guest.breaks(16, block=0)
    assert (guest.look(), guest.look(after_s=2)) == ([], [])
    guest.breaks(11, block=1)
    (told,) = guest.look(after_s=2)
    assert (told.node, told.broken_blocks, told.limit_blocks) == (1, 11, 2)
    assert "of node 1" in guest.stops[0]
    assert guest.guard.limit_of(1) == NodeLimit(2, 11)
    assert guest.guard.limit_of(0) == guest.guard.limit_of(None) == NodeLimit(None, None)


def test_of_several_limits_the_one_that_is_broken_most_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = FragmentationLimit(max_broken_blocks=12, node_max_broken=((0, 3), (1, 1)))
    guest = _Guest(monkeypatch, limit, ram_block(0), ram_block(1, node=1))
    guest.breaks(4, block=0)
    guest.breaks(12, block=1)
    (told,) = guest.look()
    assert (told.node, told.broken_blocks) == (1, 12)


def test_a_range_that_would_break_too_many_is_refused_and_nothing_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, FragmentationLimit(max_broken_blocks=1))
    (block,) = guest.blocks
    guest.guard.refuse_to_break([pages_of(block, 0)])
    guest.guard.refuse_to_break([huge_page_of(block, 0, 64)])
    with pytest.raises(RangeError, match=r"break 2 more block\(s\) of 2 MiB") as refused:
        guest.guard.refuse_to_break([pages_of(block, 0), pages_of(block, PAGES)])
    assert refused.value.why == "1 may be broken, and 0 are"
    assert guest.ledger.ballooned_bytes == 0


def test_what_mends_more_than_it_breaks_is_taken_over_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    (block,) = guest.blocks
    guest.breaks(5)
    guest.guard.refuse_to_break([huge_page_of(block, 0), pages_of(block, 7 * PAGES)])
    with pytest.raises(RangeError):
        guest.guard.refuse_to_break([pages_of(block, 7 * PAGES)])


def test_no_inflate_is_asked_for_while_too_much_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, FragmentationLimit(max_broken_blocks=2))
    guest.breaks(2)
    assert guest.guard.obstacle() == ""
    guest.breaks(3)
    assert "has broken 3 block(s)" in guest.guard.obstacle()
    assert _Guest(monkeypatch, None).guard.obstacle() == ""


def test_a_driver_that_breaks_nothing_is_asked_for_more_and_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    assert guest.guard.first_step() == 2 << 20
    for number in range(6):
        guest.gives(number, PAGES)
        assert guest.comes_to_step() == []
    assert guest.steps == [4, 8, 16, 32, 32, 32]
    assert guest.guard.first_step() == 2 << 20, "another size is asked for from the beginning"
    assert _Guest(monkeypatch, None).guard.first_step() is None


def test_a_step_that_broke_something_is_followed_by_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, FragmentationLimit(max_broken_blocks=40))
    guest.guard.first_step()
    for number, pages in enumerate((PAGES, PAGES, 7, PAGES)):
        guest.gives(number, pages)
        guest.comes_to_step()
    assert guest.steps == [4, 8, 2, 4]
    guest.left = None
    for _ in range(2):
        guest.comes_to_step()
    assert guest.steps == [4, 8, 2, 4, 8, 8], "what was not taken is asked again"


def test_a_step_that_ends_within_a_block_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    guest.guard.first_step()
    guest.gives(0, 200)
    assert guest.comes_to_step(after_s=5) == [], "however long it stands there"
    guest.gives(0, PAGES - 200, first=200)
    assert guest.comes_to_step() == []
    assert (guest.steps, guest.stops) == ([2, 4], [])


def test_no_step_is_taken_before_what_was_given_up_was_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = _Guest(monkeypatch, FragmentationLimit(max_broken_blocks=4))
    guest.guard.first_step()
    guest.breaks(13)
    assert len(guest.comes_to_step()) == 1
    assert (guest.steps, len(guest.stops)) == ([], 1)


def test_a_driver_that_stands_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, KEEP_GUEST_PERFORMANCE)
    assert guest.guard.due_s() is None
    guest.is_stepping = True
    assert guest.guard.due_s() == pytest.approx(0.5)
    guest.gives(0, PAGES)
    guest.look()
    assert guest.guard.due_s() == pytest.approx(0.02)
    guest.look(after_s=2)
    assert guest.guard.due_s() == pytest.approx(0.5)


def test_the_report_has_the_limit_and_what_a_stop_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(monkeypatch, FragmentationLimit(min_order=9, max_broken_blocks=1))
    guest.breaks(20)
    guest.look()
    report = guest.guard.report(Tally(broken=20, whole=0, untouched=44))
    assert (report.limit_blocks, report.min_order, report.counted_blocks) == (1, 9, 20)
    assert report.stopped_at_bytes == LEFT
    guest.guard.go_on()
    assert guest.guard.report(Tally(20, 0, 44)).stopped_at_bytes is None
    without = _Guest(monkeypatch, None).guard.report(Tally(broken=3, whole=2, untouched=1))
    assert (without.limit_blocks, without.min_order, without.counted_blocks) == (None, None, 3)
