# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose balloon breaks huge pages, and what stops it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from uffdballoon.errors import RangeError
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, GpaRange
from uffdballoon.model.fragmentation import FragmentationLimit
from uffdballoon.model.granule import Granule
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.records.events import EventKind, Notice
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.lab.microguest import MicroGuest
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

WHOLE = GpaRange.of(64 << 20, 32 << 20)
PIECES = GpaRange.of(96 << 20, 64 << 20)
LIMIT_BLOCKS = 4
_STEP_PAGES = 16
_SEED = 0xF4A6
_BLOCKS = PIECES.size_bytes // HUGE_BYTES


def thp_fragmentation_limit(stage: Stage) -> None:
    """Let a guest give whole blocks up, and stop it when it gives up pieces of too many."""
    qemu = stage.start()
    ram_bytes = qemu.options.memory.size_bytes
    for span in (WHOLE, PIECES):
        qemu.guest.fill(span, _SEED, stride_bytes=PAGE_BYTES)
    limit = FragmentationLimit(max_broken_blocks=LIMIT_BLOCKS)
    with stage.attach(qemu, "observe", fragmentation=limit) as session:
        session.ask_balloon(ram_bytes - WHOLE.size_bytes)
        pending = qemu.guest.start(
            f"balloon inflate {WHOLE.start:x} {WHOLE.size_bytes // PAGE_BYTES:x} {PAGE_BYTES:x} 100"
        )
        stage.finish(session, pending)
        pending.wait()
        stage.wait_for(session, "all of it", lambda: _reached(session))
        stage.settle(session)
        state = session.status().fragmentation
        stage.guest(f"gave up {format_size(WHOLE.size_bytes)} in whole blocks")
        stage.promise(
            "whole blocks break nothing, and nobody stops them",
            holds=state.broken_blocks == 0
            and state.whole_blocks == WHOLE.size_bytes // HUGE_BYTES
            and state.stopped_at_bytes is None,
        )
        _give_up_pieces(stage, session, qemu.guest, ram_bytes)
        state = session.status().fragmentation
        told = [
            event
            for event in stage.events
            if isinstance(event, Notice) and event.kind is EventKind.FRAGMENTATION_LIMIT
        ]
        stage.promise(
            f"it is stopped soon after {LIMIT_BLOCKS} blocks, and that is told with how far it got",
            holds=LIMIT_BLOCKS < state.broken_blocks < _BLOCKS
            and bool(told)
            and state.stopped_at_bytes is not None
            and told[0].actual_bytes is not UNSET
            and told[0].actual_bytes >= state.stopped_at_bytes > 0,
        )
        stage.promise(
            "whoever asked for more is told why it was stopped",
            holds=session.balloon_progress().state is ProgressState.STOPPED
            and session.ask_balloon(PAGE_BYTES).state is ProgressState.STOPPED,
        )
        stage.promise(
            "nor may the operator break another block",
            holds=_is_refused(session, GpaRange.of(PIECES.end, PAGE_BYTES)),
        )
        whole = GpaRange.of(PIECES.end, 2 * HUGE_BYTES)
        stage.inflate(session, whole, Granule.THP)
    kept = GpaRange(Gpa(PIECES.start + _STEP_PAGES * PAGE_BYTES), Gpa(PIECES.start + HUGE_BYTES))
    check = qemu.guest.verify(kept, _SEED, stride_bytes=PAGE_BYTES)
    stage.promise("what it kept of a broken block is as it was", holds=check.bad_lines == 0)
    stage.check_owned(qemu.guest)


def _give_up_pieces(stage: Stage, session: Session, guest: MicroGuest, ram_bytes: int) -> None:
    """Have the guest break a block with each page, as its balloon's target asks for more."""
    asked = ram_bytes - WHOLE.size_bytes - PIECES.size_bytes
    session.ask_balloon(asked)
    stage.host(f"asked for {format_size(PIECES.size_bytes)} more")
    for block in range(_BLOCKS):
        state = _balloon(guest)
        if state["target"] <= state["actual"]:
            break
        at = PIECES.start + block * HUGE_BYTES
        guest.balloon_inflate(GpaRange.of(at, _STEP_PAGES * PAGE_BYTES))
        stage.guest(f"gave up {_STEP_PAGES} pages of block {block + 1}")
        stage.settle(session)
    # A few over the limit are stopped once no page has come for a moment.
    stage.wait_for(
        session,
        "a stop",
        lambda: session.status().fragmentation.stopped_at_bytes is not None,
    )
    stage.guest("sees the target that it has reached, and gives up no more")


def _balloon(guest: MicroGuest) -> dict[str, int]:
    words = (word.partition("=") for word in guest.command("balloon target").split())
    return {name: int(value, 16) for name, _, value in words if value}


def _reached(session: Session) -> bool:
    return session.balloon_progress().state is ProgressState.REACHED


def _is_refused(session: Session, span: GpaRange) -> bool:
    before = session.status().ballooned_bytes
    try:
        session.inflate(span, Granule.SMALL, guest_agreed=True)
    except RangeError:
        return session.status().ballooned_bytes == before
    return False
