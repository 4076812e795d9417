# SPDX-License-Identifier: GPL-2.0-or-later
"""Lifting all traps for as long as the VMM needs a userfaultfd of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon._native import lib
from uffdballoon.host.errnos import check_uffd
from uffdballoon.model.addresses import PAGE_BYTES

if TYPE_CHECKING:
    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.core.relay import Lookout


class Yielder:
    """Lifts the traps of a fault loop and sets them again; the ledger stays.

    To be closed before the loop is stopped.
    """

    def __init__(self, loop: FaultLoop) -> None:
        self._engine = loop.handle
        self._relay: Lookout | None = None

    def close(self) -> None:
        self.watch(None)

    def watch(self, relay: Lookout | None) -> None:
        """Yield on ``relay``'s own thread when it sees a migration begin; None: no more."""
        if relay is self._relay:
            return
        before, self._relay = self._relay, relay
        if before is not None and before.handle is not None:
            self._have_it(before, yields=False)
        if relay is not None:
            self._have_it(relay, yields=True)

    def _have_it(self, relay: Lookout, *, yields: bool) -> None:
        lib.uffdb_engine_yield_at_migration(self._engine, relay.handle, yields)

    @property
    def is_yielded(self) -> bool:
        return bool(lib.uffdb_engine_yielded(self._engine))

    def yield_now(self) -> None:
        """Lift all traps; whoever waits in a fault goes on."""
        check_uffd(lib.uffdb_engine_yield(self._engine), "cannot let the windows go")

    def take_up(self) -> int:
        """Trap again what is ballooned; return the bytes that are the guest's since.

        Raises TargetBusyError while another userfaultfd holds the memory: nothing is trapped then.
        """
        pages = check_uffd(lib.uffdb_engine_take_up(self._engine), "cannot trap the balloon again")
        return pages * PAGE_BYTES
