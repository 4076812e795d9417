# SPDX-License-Identifier: GPL-2.0-or-later
"""Resets of the guest, which empty its balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.errors import TargetGoneError, UffdballoonError
from uffdballoon.model.notice import notice
from uffdballoon.model.part import Tick
from uffdballoon.model.records.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.part import Source
    from uffdballoon.model.records.events import Notice
    from uffdballoon.session.attachment import Attachment

_AGAIN_S = 0.1


class Resets:
    """Follows the guest's resets; ``count`` them, and ``emptied_bytes`` by all of them."""

    name = "resets"

    def __init__(self, attached: Attachment) -> None:
        self._enforcer = attached.enforcer
        self._guard = attached.guard
        self._at_ns: int | None = None  # of a reset that is still to be followed
        self.count = 0
        self.emptied_bytes = 0

    def sources(self) -> Sequence[Source]:
        return ()

    def tick(self) -> Tick:
        """Follow a reset that could not be followed yet."""
        return Tick(self.catch_up(), None if self._at_ns is None else _AGAIN_S)

    def reset(self, at_ns: int) -> None:
        """Empty the balloon, and begin the boot grace.

        What the guest gave up after ``at_ns`` (CLOCK_MONOTONIC) stays in it.
        """
        before = self._enforcer.ledger.ballooned_bytes
        self.count += 1
        self._enforcer.loop.reset(at_ns)
        self.emptied_bytes += before - self._enforcer.ledger.ballooned_bytes
        self._guard.go_on()

    def note(self, at_ns: int) -> None:
        """Note a reset of the guest, for catch_up() to follow."""
        self._at_ns = at_ns

    def catch_up(self) -> list[Notice]:
        """Reset as the guest was; what fails is told, and tick() tries again."""
        if self._at_ns is None:
            return []
        try:
            self.reset(self._at_ns)
        except TargetGoneError:
            return []
        except UffdballoonError as error:
            return [notice(EventKind.RESET_FAILED, f"trying again: {error}")]
        self._at_ns = None
        return []
