# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's free memory as Linux's buddy allocator keeps it, and a balloon that takes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from uffdballoon.bench._bench import ffi, lib  # noqa: TID251 - of native/bench/buddy.c
from uffdballoon.core.ledger import Ledger
from uffdballoon.host.errnos import check
from uffdballoon.model.addresses import PAGE_BYTES, Hva
from uffdballoon.model.fragments import MAX_ORDER
from uffdballoon.model.ram import Backing, RamBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from uffdballoon.model.fragments import Fragments

_START = Hva(1 << 45)


class Buddy:
    """A guest of which every page is in use at first; its balloon is empty.

    ``pages`` are whole blocks of 4 MiB, the largest that the allocator has.
    """

    def __init__(self, pages: int) -> None:
        size_bytes = pages * PAGE_BYTES
        self._block = RamBlock("ram", _START, size_bytes, PAGE_BYTES, Backing.ANON, shared=False)
        self._balloon = Ledger([self._block])
        out = ffi.new("struct uffdb_bench_buddy **")
        check(lib.uffdb_bench_buddy_create(pages, out), "cannot simulate a guest")
        self._handle = out[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        lib.uffdb_bench_buddy_destroy(self._handle)

    def free(self, first: int, pages: int) -> None:
        """Free pages that are in use; raise where one of them is free."""
        check(lib.uffdb_bench_buddy_free(self._handle, first, pages), "cannot free pages")

    def scatter(self, orders: Iterable[int], *, in_use: float, seed: int) -> None:
        """Free all but a share of pieces at random places, all of it in use so far.

        Each 4 MiB are made of pieces of 2^order pages, of one of ``orders``.
        """
        bits = sum(1 << order for order in set(orders))
        permille = round(in_use * 1000)
        check(
            lib.uffdb_bench_buddy_scatter(self._handle, bits, permille, seed),
            "cannot leave pieces in use",
        )

    def take(self, pages: int, seed: int) -> int:
        """Take single pages into the balloon, as Linux's driver does; return how many there were.

        Of the blocks of an order that is not taken whole ``seed`` draws some; 0: the lowest.
        """
        ledger = ffi.cast("struct uffdb_ledger *", self._balloon.handle)
        return check(
            lib.uffdb_bench_buddy_take(self._handle, pages, seed, ledger), "cannot take pages"
        )

    @property
    def blocks(self) -> list[int]:
        """Free blocks of each order."""
        out = ffi.new("uint64_t[]", MAX_ORDER + 1)
        lib.uffdb_bench_buddy_blocks(self._handle, out)
        return [int(count) for count in out]

    @property
    def free_pages(self) -> int:
        return sum(count << order for order, count in enumerate(self.blocks))

    def fragments(self) -> Fragments:
        """Measure the balloon."""
        return self._balloon.fragments([(self._block.hva_range, 0)])

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the balloon's runs as (first page, pages)."""
        for run in self._balloon.runs(self._block.hva_range):
            yield (run.start - self._block.hva) // PAGE_BYTES, run.size_bytes // PAGE_BYTES
