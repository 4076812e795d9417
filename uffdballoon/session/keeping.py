# SPDX-License-Identifier: GPL-2.0-or-later
"""What outlives a manager: the memory that its ledger lies in, and who holds it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from uffdballoon.core.ledger import NOTE_BYTES, NOTE_OFFSET
from uffdballoon.errors import UffdballoonError
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.encoding import parse, read, to_line
from uffdballoon.model.records.policy import PolicyInForce

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


def in_force(options: SessionOptions) -> PolicyInForce:
    """Return what these options hold a guest to."""
    return PolicyInForce.of(options.policy, options.terms, without_monitor=options.without_monitor)


def note_policy(memory: int, *, asked: PolicyInForce, now: PolicyInForce) -> None:
    """Note what was set in place of what the attach asked for, for whoever takes over.

    In the ledger's memfd; -1: nobody does.
    """
    if memory < 0:
        return
    line = to_line([asked, now])
    assert len(line) <= NOTE_BYTES
    os.pwrite(memory, line, NOTE_OFFSET)


def as_it_was_set(options: SessionOptions, progress: Callable[[str], None]) -> SessionOptions:
    """Return options with what was set under the manager before us.

    That holds as long as an attach asks for the same as the one under which it was set, as a
    service that is started anew does. One that asks for something else means it.
    """
    if options.held is None:
        return options
    noted = _noted_policy(options.held.memory)
    if noted is None:
        return options
    asked, now = noted
    if asked != in_force(options):
        progress(f"what was set by `policy` does not hold any more: {now}")
        os.pwrite(options.held.memory, b"\0", NOTE_OFFSET)
        return options
    progress(f"in force is what was set by `policy`: {now}")
    return replace(options, policy=now.ladder, terms=now.terms, without_monitor=now.without_monitor)


def _noted_policy(memory: int) -> tuple[PolicyInForce, PolicyInForce] | None:
    line, newline, _ = os.pread(memory, NOTE_BYTES, NOTE_OFFSET).partition(b"\n")
    if not newline or line.startswith(b"\0"):
        return None
    try:
        asked, now = read(parse(line), tuple[PolicyInForce, PolicyInForce])
        parse_policy(now.policy)
    except (ValueError, UffdballoonError):  # of another version; or it was killed while it wrote
        return None
    return asked, now
