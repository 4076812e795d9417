# SPDX-License-Identifier: GPL-2.0-or-later
"""What a touch means under the contract: the reference for native/src/contract.c.

Pure, and as plain as can be. The fault loop judges by the C code; the tests hold
the two against each other on generated histories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(slots=True)
class Grace:
    """A boot grace that is running. None stands for a limit that is not set."""

    until_ns: int | None
    left_bytes: int | None

    def pays(self, size_bytes: int, now_ns: int) -> bool:
        """Pay for a touch; False when a limit is reached, and then for good."""
        if self.until_ns is not None and now_ns >= self.until_ns:
            return False
        if self.left_bytes is not None:
            if self.left_bytes < size_bytes:
                return False
            self.left_bytes -= size_bytes
        return True


@dataclass(slots=True)
class Contract:
    """The terms, the pages in the balloon, and what the guest may do with them.

    Pages are numbers of 4 KiB pages; ``node_of`` tells to which NUMA node of the guest one
    belongs.
    """

    terms: Terms
    ballooned: set[int] = field(default_factory=set)
    grace: Grace | None = None
    node_of: Callable[[int], int] = lambda _: 0

    @property
    def ballooned_bytes(self) -> int:
        return len(self.ballooned) * PAGE_BYTES

    def node_bytes(self, node: int) -> int:
        """Return what is ballooned of a node."""
        return sum(1 for page in self.ballooned if self.node_of(page) == node) * PAGE_BYTES

    def inflate(self, pages: Iterable[int]) -> None:
        self.ballooned.update(pages)

    def deflate(self, pages: Iterable[int]) -> None:
        self.ballooned.difference_update(pages)

    def reset(self, now_ns: int) -> None:
        """Empty the balloon: the guest was reset, and its boot grace begins."""
        self.ballooned.clear()
        terms = self.terms
        if terms.grace_ns or terms.grace_bytes:
            self.grace = Grace(
                now_ns + terms.grace_ns if terms.grace_ns else None, terms.grace_bytes or None
            )

    def touch(self, page: int, role: Role, now_ns: int) -> Verdict:
        """Judge a touch. What is granted leaves the balloon; a violation is the policy's."""
        verdict = self._judge(page, role, now_ns)
        if verdict is Verdict.GRANTED:
            self.ballooned.discard(page)
        return verdict

    def _judge(self, page: int, role: Role, now_ns: int) -> Verdict:
        if page not in self.ballooned or role is Role.HOST_READER:
            return Verdict.ORDINARY
        if self.terms.kind is ContractKind.TOLD:
            return Verdict.VIOLATION
        if self._stays_above_its_floors(page):
            return Verdict.GRANTED
        if self.grace is not None:
            if self.grace.pays(PAGE_BYTES, now_ns):
                return Verdict.GRANTED
            self.grace = None
        return Verdict.VIOLATION

    def _stays_above_its_floors(self, page: int) -> bool:
        if self.ballooned_bytes - PAGE_BYTES < self.terms.floor_bytes:
            return False
        node = self.node_of(page)
        floor_bytes = self.terms.floor_of(node)
        return not floor_bytes or self.node_bytes(node) - PAGE_BYTES >= floor_bytes
