# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own balloon driver: what it is asked for, and what it says it has done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.records.balloon import (
    BalloonAccount,
    BalloonProgress,
    DriverProgress,
    ProgressState,
)

if TYPE_CHECKING:
    from uffdballoon.session.attachment import Attachment


class Driver:
    """Asked by QEMU's monitor, and held against the ledger."""

    def __init__(self, attached: Attachment) -> None:
        self._machine = attached.machine
        self._layout = attached.layout
        self._ledger = attached.enforcer.ledger
        self._guard = attached.guard
        self._loop = attached.enforcer.loop
        self._nodes = attached.nodes
        self._before = self._nodes.ballooned()

    def ask(self, target_bytes: int) -> BalloonProgress:
        """Ask it to leave the guest that much memory; return progress().

        Raises UnsupportedError without a monitor or device, RangeError for more
        than its RAM or nothing at all, QmpError when QEMU refuses. Nothing is
        asked for, and the state is stopped, when more huge pages are broken than may be.
        Where there is a limit of those it is asked in steps, which the guard sees to.
        """
        obstacle = self._guard.obstacle()
        actual = self._machine.actual_bytes() if obstacle else None
        if actual is not None and target_bytes < actual:
            return self._with_ballooned(
                DriverProgress(
                    target_bytes=target_bytes,
                    before_bytes=actual,
                    actual_bytes=actual,
                    state=ProgressState.STOPPED,
                    why=obstacle,
                )
            )
        first = self._guard.first_step()
        before = self._nodes.ballooned()
        asked = self._machine.ask_balloon(target_bytes, self._ram_bytes(), first)
        self._guard.go_on()
        self._before = before
        return self._with_ballooned(asked)

    def leave(self, floor_bytes: int) -> BalloonProgress | None:
        """Ask it to have that much in the balloon; None where there is nobody to be asked.

        Raises as ask() does.
        """
        if not self._machine.has_device:
            return None
        return self.ask(self._ram_bytes() - floor_bytes)

    def progress(self) -> BalloonProgress:
        """Return how far the guest has come to what it was asked for last."""
        return self._with_ballooned(self._machine.balloon_progress())

    def account(self, ballooned_bytes: int) -> BalloonAccount:
        """Compare the ledger with what the guest says; None where nobody can be asked.

        What it reported free is in the ledger, and not in what its driver counts. With pieces of
        huge pages it is the other way round.
        """
        actual = self._machine.actual_bytes()
        stats = self._loop.stats()
        ballooned_bytes += (stats.pieces - stats.reported_pages) * PAGE_BYTES
        ram_bytes = self._ram_bytes()
        return BalloonAccount(
            actual_bytes=actual,
            unaccounted_bytes=None if actual is None else ram_bytes - actual - ballooned_bytes,
        )

    def _ram_bytes(self) -> int:
        """Return what QEMU counts, with what was plugged in and out since the attach."""
        return self._layout.allocated_bytes + (self._machine.counted_change_bytes() or 0)

    def _with_ballooned(self, progress: DriverProgress) -> BalloonProgress:
        now = self._nodes.ballooned()
        came = {node: now[node] - self._before.get(node, 0) for node in now}
        return BalloonProgress.of(progress, self._ledger.ballooned_bytes, came)
