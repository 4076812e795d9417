# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells of 2 MiB of guest memory, as the C library fills and judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.host.errnos import check_uffd
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.blockstate import BlockState

if TYPE_CHECKING:
    from uffdballoon.core.fault_loop import FaultLoop
    from uffdballoon.model.addresses import GpaRange, HvaRange

_LETTERS = bytes.maketrans(
    bytes(
        (
            lib.UFFDB_CELL_ABSENT,
            lib.UFFDB_CELL_OWNED_HUGE,
            lib.UFFDB_CELL_OWNED_4K,
            lib.UFFDB_CELL_ARMED,
            lib.UFFDB_CELL_BALLOONED,
            lib.UFFDB_CELL_PARTLY,
            lib.UFFDB_CELL_TOUCHED,
        )
    ),
    "".join(state.letter for state in BlockState).encode(),
)


class Cells:
    """The cells of a stretch of guest memory, which begins and ends with a cell."""

    def __init__(self, span: GpaRange) -> None:
        self._start = span.start
        self._count = span.size_bytes // HUGE_BYTES
        self._cells = ffi.new("struct uffdb_cell[]", self._count)

    def add(self, loop: FaultLoop, gpa: int, span: HvaRange) -> None:
        """Add what is known of ``span``, which lies in one RAM block and is seen at ``gpa``."""
        first, lead_bytes = divmod(gpa - self._start, HUGE_BYTES)
        check_uffd(
            lib.uffdb_engine_cells(
                loop.handle,
                span.start,
                span.size_bytes,
                lead_bytes,
                self._cells + first,
                self._count - first,
            ),
            f"cannot tell what {span} holds",
        )

    def letters(self, since_ns: int) -> bytes:
        """Return a letter of BlockState for each; touches after ``since_ns`` are shown.

        ``since_ns`` is of CLOCK_MONOTONIC.
        """
        states = ffi.new("uint8_t[]", self._count)
        lib.uffdb_cell_states(self._cells, self._count, max(since_ns, 1), states)
        return bytes(ffi.buffer(states)).translate(_LETTERS)
