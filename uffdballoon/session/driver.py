# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own balloon driver: what it is asked for, and what it says it has done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.records.balloon import (
    BalloonAccount,
    BalloonProgress,
    DriverProgress,
    ProgressState,
)

if TYPE_CHECKING:
    from uffdballoon.session.attachment import Attachment


_INHIBITING = ("vfio", "vdpa", "encrypted")


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
        self._observer = attached.observer.kind
        self._yielder = attached.yielder
        self._unsuitable = attached.unsuitable
        self._progress: DriverProgress | None = None

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
        asked = self._progress
        stats = self._loop.stats()
        ballooned_bytes += (stats.pieces - stats.reported_pages) * PAGE_BYTES
        ram_bytes = self._ram_bytes()
        unknown = None if actual is None else ram_bytes - actual - ballooned_bytes
        return BalloonAccount(
            actual_bytes=actual,
            unaccounted_bytes=unknown,
            asked_bytes=None if asked is None else asked.target_bytes,
            why=self._why_they_differ(actual, unknown),
        )

    def _why_they_differ(self, actual: int | None, unknown: int | None) -> str:
        whys = []
        asked = self._progress
        if asked is not None and actual is not None and actual != asked.target_bytes:
            whys.append(asked.why or "the guest's driver is on its way")
        if unknown is not None and unknown > 0:
            whys.append(self._why_nothing_goes() or self._why_unknown())
        return "; ".join(whys)

    def _why_unknown(self) -> str:
        if self._observer is ObserverKind.DIRECT:
            return "the observer direct does not follow the guest's own balloon"
        return "some was in the balloon before anybody looked, or while nobody could"

    def _why_nothing_goes(self) -> str:
        """Say why QEMU counts what the driver gives up, and keeps it; empty when it does not.

        QEMU, hw/virtio/virtio-balloon.c: virtio_balloon_inhibited().
        """
        if self._yielder.is_yielded:
            return "QEMU discards nothing during a background snapshot or a postcopy migration"
        pinned = [finding.name for finding in self._unsuitable if finding.name in _INHIBITING]
        if pinned:
            return f"QEMU discards nothing of a guest whose memory others use ({pinned[0]})"
        return ""

    def _ram_bytes(self) -> int:
        """Return what QEMU counts, with what was plugged in and out since the attach."""
        return self._layout.allocated_bytes + (self._machine.counted_change_bytes() or 0)

    def _with_ballooned(self, progress: DriverProgress) -> BalloonProgress:
        now = self._nodes.ballooned()
        if not progress.why:
            progress = replace(progress, why=self._why_nothing_goes())
        self._progress = progress
        came = {node: now[node] - self._before.get(node, 0) for node in now}
        return BalloonProgress.of(progress, self._ledger.ballooned_bytes, came)
