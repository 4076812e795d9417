# SPDX-License-Identifier: GPL-2.0-or-later
"""Who holds a guest between two managers: what is held is taken, and a holder is named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from uffdballoon.cli.output import say
from uffdballoon.core.keeper import Held, start_keeper, take_from_keeper
from uffdballoon.core.service_manager import Passed, ServiceManager, Store, trace_of
from uffdballoon.daemon.runtime import keeper_path, listen_at
from uffdballoon.session import Holding

if TYPE_CHECKING:
    from uffdballoon.core.keeper import Keeper, Kept

_NS_PER_S = 1_000_000_000


def take_held(pid: int, service: ServiceManager | None) -> Held | None:
    """Take what the service manager, or a keeper, holds of that process."""
    passed = Passed.take().of(pid if service is not None else None)
    if passed and service is not None:
        store = Store(service, pid)
        os.close(passed["pidfd"])
        monitor = passed.get("monitor")
        return Held(store, passed["uffd"], passed["ledger"], trace_of(passed), monitor)
    return take_from_keeper(keeper_path(pid))


def holding_by(
    pid: int, hold_ns: int, held: Held | None, service: ServiceManager | None
) -> Holding:
    """Say who is to hold all; one who does already goes on."""
    if held is not None:
        return Holding(None)
    if service is not None:
        # A keeper would be a process of the service, and end with it (systemd.kill(5), KillMode=).
        if not service.is_known_to_store:
            say(
                "not known: whether the service manager holds what it is given "
                "(FileDescriptorStoreMax=; systemd 254 and later say so in FDSTORE)"
            )
        return Holding(Store(service, pid).hold)
    keeper_path(pid).unlink(missing_ok=True)  # of one that has ended
    listener = listen_at(keeper_path(pid), pid)

    def hold(kept: Kept) -> Keeper:
        with listener:
            return start_keeper(listener, kept, hold_ns)

    return Holding(hold)


def held_words(hold_ns: int, service: ServiceManager | None) -> str:
    """Tell for how long what is left behind is held."""
    if service is not None:
        return "its traps are held by the service manager, until the unit is started anew or stops"
    return f"its traps are held for {hold_ns / _NS_PER_S:g} s: attach again to go on"
