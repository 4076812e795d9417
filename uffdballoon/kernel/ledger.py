# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger: which pages are in the balloon now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.kernel.errnos import check_uffd
from uffdballoon.model.addresses import PAGE_BYTES, HvaRange
from uffdballoon.model.ram import Backing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from uffdballoon.model.ram import RamBlock


def _flags(block: RamBlock) -> int:
    shared = lib.UFFDB_BLOCK_SHARED if block.backing is not Backing.ANON else 0
    hugetlb = lib.UFFDB_BLOCK_HUGETLB if block.backing is Backing.HUGETLBFS else 0
    return int(shared | hugetlb)


class Ledger:
    """One bit a 4 KiB page of the RAM blocks; safe beside a running engine."""

    def __init__(self, blocks: Sequence[RamBlock]) -> None:
        self.blocks = tuple(blocks)
        rows = ffi.new(
            "struct uffdb_block[]", [(b.hva, b.size_bytes, _flags(b), 0) for b in blocks]
        )
        out = ffi.new("struct uffdb_ledger **")
        check_uffd(lib.uffdb_ledger_create(rows, len(blocks), out), "cannot make a ledger")
        self.handle = ffi.gc(out[0], lib.uffdb_ledger_destroy)

    def set(self, span: HvaRange) -> int:
        """Call pages ballooned; return how many were not."""
        return check_uffd(
            lib.uffdb_ledger_set(self.handle, span.start, span.size_bytes),
            f"{span} is not guest RAM",
        )

    def clear(self, span: HvaRange) -> int:
        """Call pages owned; return how many were ballooned."""
        return check_uffd(
            lib.uffdb_ledger_clear(self.handle, span.start, span.size_bytes),
            f"{span} is not guest RAM",
        )

    def test(self, hva: int) -> bool:
        return bool(
            check_uffd(lib.uffdb_ledger_test(self.handle, hva), f"hva {hva:#x} is not guest RAM")
        )

    @property
    def ballooned_bytes(self) -> int:
        return int(lib.uffdb_ledger_pages(self.handle)) * PAGE_BYTES

    def runs(self, span: HvaRange) -> Iterator[HvaRange]:
        """Yield the ballooned stretches of a range that lies in one RAM block."""
        out = ffi.new("struct uffdb_range *")
        at = int(span.start)
        while at < span.end and lib.uffdb_ledger_next(self.handle, at, span.end, out) > 0:
            yield HvaRange.of(out.start, out.len)
            at = out.start + out.len
