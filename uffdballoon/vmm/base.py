# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM has to tell of a guest while somebody is attached to it.

What it tells once, for an attach, are functions of its package: its RAM as a Layout, its vCPUs,
which thread to run calls in, and what speaks against the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from uffdballoon.core.relay import Lookout
    from uffdballoon.model.job import Job
    from uffdballoon.model.records.balloon import DriverProgress, GuestMemory
    from uffdballoon.model.records.events import Notice


class Heard(NamedTuple):
    """What a VMM told: event lines, and what the session has to do about it.

    ``reset_ns`` is CLOCK_MONOTONIC; None when the guest was not reset. ``migration`` is the state
    that one has come to.
    """

    notices: list[Notice]
    reset_ns: int | None
    balloon_moved: bool
    ram_moved: bool = False
    migration: str | None = None


class Vmm(Protocol):
    """The guest's machine as its VMM tells of it. None is what nobody can tell, now or ever.

    hear(), reconnect(), due_s() and what is asked a turn at a time are for a loop: they wait for
    no VMM that does not answer. The questions by themselves wait a second at most, and what changes
    something a few.
    """

    missed: bool
    """Whether a reset of the guest may have been missed before we came."""

    @property
    def has_device(self) -> bool | None:
        """Whether there is a balloon device."""

    @property
    def reports_free_pages(self) -> bool | None:
        """Whether what leaves the guest is more than its balloon."""

    @property
    def is_lost(self) -> bool:
        """Whether the VMM does not hear us any more, and reconnect() is worth trying."""

    @property
    def relay(self) -> Lookout | None:
        """What sees a reset of the guest before its next touch is judged."""

    def fileno(self) -> int | None:
        """Return the fd of a source: readable while hear() has something to take."""

    def hear(self) -> Heard:
        """Take what was told since the last time."""

    def reconnect(self) -> list[Notice]:
        """Try to be heard again, now and then; tell when it worked."""

    def due_s(self) -> float | None:
        """Do what is due, and return the seconds until more is."""

    def asking_vcpus(self) -> Job[dict[int, int] | None]:
        """Map thread ids of vCPUs, as the VMM has them, to their numbers; a turn at a time."""

    def asking(self) -> Job[None]:
        """Have the questions below answered, a turn at a time, for answered()."""

    def answered(self) -> AbstractContextManager[None]:
        """Answer the questions below, in the context, by what was said last."""

    def actual_bytes(self) -> int | None:
        """Return what the guest has left by its own account."""

    def ram_change_bytes(self) -> int | None:
        """Return how much RAM came since the attach, below zero: went."""

    def counted_change_bytes(self) -> int | None:
        """Return how much of it the guest's account of its balloon counts."""

    def guest_statistics(self) -> GuestMemory | None:
        """Return what the guest's driver tells of its memory."""

    def ask_balloon(
        self, target_bytes: int, ram_bytes: int, step_bytes: int | None = None
    ) -> DriverProgress:
        """Ask the guest's driver to leave it so much of its RAM; raise a named error.

        With ``step_bytes`` that is what it is asked to give up at first.
        """

    @property
    def is_stepping(self) -> bool:
        """Whether it is to be asked for more than it was asked for yet."""

    def is_at_step(self) -> bool:
        """Tell whether it has come as far as it was asked to, by what was said last."""

    def step_balloon(self, step_bytes: int) -> bool:
        """Ask it for that much more, but for no more than is wanted; False when that failed."""

    def stop_balloon(self, why: str) -> int | None:
        """Have the guest's balloon stay as it is; return what is left to the guest."""

    def balloon_progress(self) -> DriverProgress:
        """Return how far the guest has come to what it was asked for last."""

    def pausing(self, let_go: Callable[[], None]) -> Job[None]:
        """Stop the VM, a turn at a time; ``let_go`` answers the touches held for it in any case."""

    def close(self) -> None:
        """Let the VMM go as it was."""
