# SPDX-License-Identifier: GPL-2.0-or-later
"""What outlives a manager: the memory that its ledger lies in, and who holds it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from uffdballoon.core.keeper import Keeping, Kept
    from uffdballoon.session.options import SessionOptions


def ledger_memory(options: SessionOptions, undo: ExitStack) -> int:
    """Return the memfd that the ledger lies in, or -1 for none."""
    if options.held is not None:
        memory = options.held.memory
    elif options.holding is not None:
        memory = os.memfd_create("uffdballoon-ledger", os.MFD_CLOEXEC)
    else:
        return -1
    undo.callback(os.close, memory)
    return memory


def keep(options: SessionOptions, kept: Callable[[], Kept]) -> Keeping | None:
    """Have all held, or go on with who holds it; one that is not wanted any more ends.

    ``kept`` is called when there is somebody new to hold it.
    """
    held, holding = options.held, options.holding
    if held is not None:
        if holding is None:
            held.keeper.end()
            held.keeper.close()
            return None
        held.keeper.serves()
        return held.keeper
    if holding is None or holding.hold is None:
        return None
    return holding.hold(kept())
