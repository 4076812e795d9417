# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's memory, its balloon and the counters must be, by reference alone.

Pure: the reference contract, and around it as little as tells what the kernel and the fault
loop do to private anonymous memory in 4 KiB pages (docs/architecture.md, "The fault loop").
Everything happens one after the other.
"""

from __future__ import annotations

import enum
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.support.contract import Contract
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES
from uffdballoon.model.ladder import RungKind
from uffdballoon.model.touch import Access, Action, Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uffdballoon.model.ladder import Rung
    from uffdballoon.model.terms import Terms

PER_BLOCK = HUGE_BYTES // PAGE_BYTES
_AROUND_FIRST = 4
_WORD = struct.Struct("<Q")
_ACTIONS = {RungKind.OBSERVE: Action.GRANT, RungKind.THROTTLE: Action.THROTTLE}


class Page(enum.Enum):
    """What the page tables say of a page."""

    ABSENT = "absent"
    ZERO = "zero"  # the shared zero page
    TRAPPED_ZERO = "trapped zero"  # the same, write-protected
    HELD = "held"  # memory of its own


class Told(NamedTuple):
    """An event: a touch that was not ordinary."""

    page: int
    access: Access
    role: Role
    verdict: Verdict
    action: Action


@dataclass
class _Around:
    """How far the fault loop fills behind a touch of owned memory."""

    next_page: int = -1
    pages: int = 0

    def reach(self, page: int) -> int:
        if page != self.next_page:
            self.pages = _AROUND_FIRST
        elif self.pages * 2 <= PER_BLOCK:
            self.pages *= 2
        return self.pages


@dataclass
class Attached:
    """What begins anew with each attach."""

    contract: Contract
    rungs: tuple[Rung, ...]
    counts: Counter[str] = field(default_factory=Counter)
    actions: Counter[Action] = field(default_factory=Counter)
    told: list[Told] = field(default_factory=list)
    around: _Around = field(default_factory=_Around)


class BalloonModel:
    """Pages are numbers; ``image`` is what the guest would read. ``now`` is None when detached."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.pages = [Page.ABSENT] * (blocks * PER_BLOCK)
        self.image = bytearray(blocks * HUGE_BYTES)
        self.now: Attached | None = None
        self.armed: set[int] = set()

    # ---- what the manager does

    def attach(self, terms: Terms, rungs: tuple[Rung, ...]) -> None:
        self.now = Attached(Contract(terms), rungs)

    def detach(self) -> None:
        self.now = None
        self._disarm(self.armed)

    def inflate(self, pages: range) -> int:
        """Return how many were not in the balloon."""
        assert self.now is not None
        fresh = len(set(pages) - self.now.contract.ballooned)
        self.now.contract.inflate(pages)
        self.armed |= _blocks_of(pages)
        self._drop(pages)
        return fresh

    def deflate(self, pages: range) -> int:
        """Return how many were in the balloon."""
        assert self.now is not None
        before = len(self.now.contract.ballooned)
        self.now.contract.deflate(pages)
        self._unprotect(pages)
        self._disarm(_blocks_of(pages) - self._needed())
        return before - len(self.now.contract.ballooned)

    def reset(self) -> None:
        assert self.now is not None
        self.now.contract.reset(0)
        self._disarm(self.armed)

    def settle(self) -> None:
        """Follow what the guest did: windows for what it gave up, none where nothing is left."""
        needed = self._needed()
        self._disarm(self.armed - needed)
        self.armed = needed

    # ---- what the guest and its QEMU do

    def discard(self, page: int) -> None:
        if self.now is not None and page not in self.now.contract.ballooned:
            self.now.contract.inflate([page])
            self.now.counts["observed_inflated"] += 1
        self._drop([page])

    def take_back(self, page: int) -> None:
        """The page is the guest's; that its zero page is protected a touch will find out."""
        if self.now is not None and page in self.now.contract.ballooned:
            self.now.contract.deflate([page])
            self.now.counts["observed_deflated"] += 1

    def collapsed(self, block: int) -> None:
        for page in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
            self.pages[page] = Page.HELD

    def touch(self, page: int, access: Access, role: Role, value: int = 0) -> int:
        """Touch; return what a reader gets, or the value that was written."""
        before = self.pages[page]
        absent = before is Page.ABSENT
        if page // PER_BLOCK in self.armed and (
            absent or (before is Page.TRAPPED_ZERO and access is Access.WRITE)
        ):
            self._trapped(page, access, role)
        elif absent:
            self.pages[page] = Page.ZERO
        return self._access(page, access, value)

    def discard_and_touch(self, page: int, access: Access, role: Role, value: int = 0) -> int:
        """Give a page up and touch it before anybody has looked at what was given up."""
        if self.now is None or page // PER_BLOCK in self.armed:
            self.discard(page)
            return self.touch(page, access, role, value)
        now = self.now
        self.discard(page)
        if access is Access.READ:
            self.pages[page] = Page.TRAPPED_ZERO
            now.counts["late_reads"] += 1
            return 0
        # It is found there later on, and judged as the guest's write.
        now.counts["late"] += 1
        self.pages[page] = Page.TRAPPED_ZERO  # as good as: there, and not to be filled
        self._trapped(page, Access.WRITE, Role.VCPU)
        return self._access(page, access, value)

    # ---- what must be

    def held(self) -> set[int]:
        return {page for page, state in enumerate(self.pages) if state is Page.HELD}

    def windows(self) -> tuple[int, int]:
        """Return how many windows there are, and the blocks in them."""
        begins = sum(block - 1 not in self.armed for block in self.armed)
        return begins, len(self.armed)

    # ---- how it comes to be

    def _access(self, page: int, access: Access, value: int) -> int:
        at = page * PAGE_BYTES
        if access is Access.READ:
            return int(_WORD.unpack_from(self.image, at)[0])
        self.pages[page] = Page.HELD
        for offset in (0, PAGE_BYTES - _WORD.size):
            _WORD.pack_into(self.image, at + offset, value)
        return value

    def _trapped(self, page: int, access: Access, role: Role) -> None:
        assert self.now is not None
        now = self.now
        ballooned = page in now.contract.ballooned
        match now.contract.touch(page, role, 0):
            case Verdict.ORDINARY if ballooned:
                now.counts["host_reads"] += 1
                self.pages[page] = Page.TRAPPED_ZERO
            case Verdict.ORDINARY:
                now.counts["ordinary"] += 1
                self._give_around(page)
            case Verdict.GRANTED:
                now.counts["granted"] += 1
                self._tell(Told(page, access, role, Verdict.GRANTED, Action.GRANT))
                self._give_around(page)
            case Verdict.VIOLATION:
                now.counts["violations"] += 1
                self._act(page, access, role)

    def _act(self, page: int, access: Access, role: Role) -> None:
        """Answer a violation by the first rung that can."""
        assert self.now is not None
        for rung in self.now.rungs:
            if rung.kind is RungKind.ZERO_READ:
                if access is Access.WRITE:
                    continue
                self._tell(Told(page, access, role, Verdict.VIOLATION, Action.ZERO_READ))
                self.pages[page] = Page.TRAPPED_ZERO
                return
            self._tell(Told(page, access, role, Verdict.VIOLATION, _ACTIONS[rung.kind]))
            break
        self.now.contract.deflate([page])
        self.pages[page] = Page.ZERO

    def _tell(self, told: Told) -> None:
        assert self.now is not None
        self.now.told.append(told)
        self.now.actions[told.action] += 1

    def _give_around(self, page: int) -> None:
        """Fill the page, and what is absent behind it, up to the next ballooned one."""
        assert self.now is not None
        if self.pages[page] is Page.TRAPPED_ZERO:
            self.pages[page] = Page.ZERO
            return
        end = min(page + self.now.around.reach(page), (page // PER_BLOCK + 1) * PER_BLOCK)
        at = page
        while at < end and self.pages[at] is Page.ABSENT and not self._is_ballooned(at):
            self.pages[at] = Page.ZERO
            at += 1
        self.now.around.next_page = at
        self.now.counts["around_pages"] += at - page - 1

    def _is_ballooned(self, page: int) -> bool:
        return self.now is not None and page in self.now.contract.ballooned

    def _drop(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.pages[page] = Page.ABSENT
            self.image[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)

    def _unprotect(self, pages: Iterable[int]) -> None:
        for page in pages:
            if self.pages[page] is Page.TRAPPED_ZERO:
                self.pages[page] = Page.ZERO

    def _needed(self) -> set[int]:
        return _blocks_of(self.now.contract.ballooned) if self.now is not None else set()

    def _disarm(self, blocks: set[int]) -> None:
        """Unregister blocks, which lifts all protection there."""
        for block in blocks:
            self._unprotect(range(block * PER_BLOCK, (block + 1) * PER_BLOCK))
        self.armed = self.armed - blocks


def _blocks_of(pages: Iterable[int]) -> set[int]:
    return {page // PER_BLOCK for page in pages}
