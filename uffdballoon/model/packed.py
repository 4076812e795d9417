# SPDX-License-Identifier: GPL-2.0-or-later
"""Many ranges as the kernel takes them: words, not objects."""

from __future__ import annotations

import bisect
import itertools
from array import array
from typing import TYPE_CHECKING, Self

from uffdballoon.model.addresses import Hva, HvaRange

if TYPE_CHECKING:
    from collections.abc import Iterable

_CUT_BYTES = 2 << 20


class PackedRanges:
    """Ranges of host-virtual memory as pairs of start and size in bytes (struct iovec, uio.h)."""

    def __init__(self, words: array[int], size_bytes: int | None = None) -> None:
        """Take the words; ``size_bytes`` is the sum of the sizes, where it is known already."""
        self._words = words
        self.size_bytes = sum(words[1::2]) if size_bytes is None else size_bytes

    @classmethod
    def of(cls, ranges: Iterable[HvaRange]) -> Self:
        pairs = ((span.start, span.end - span.start) for span in ranges)
        return cls(array("Q", itertools.chain.from_iterable(pairs)))

    @classmethod
    def strided(cls, span: HvaRange, size_bytes: int, stride_bytes: int) -> Self:
        """Return ranges of ``size_bytes``, one at every ``stride_bytes`` of ``span``."""
        starts = array("Q", range(span.start, span.end, stride_bytes))
        words = array("Q", bytes(16 * len(starts)))
        words[::2] = starts
        words[1::2] = array("Q", [size_bytes]) * len(starts)
        return cls(words)

    def __len__(self) -> int:
        return len(self._words) // 2

    def unpacked(self) -> list[HvaRange]:
        starts, sizes = self._words[::2], self._words[1::2]
        return [HvaRange.of(Hva(s), n) for s, n in zip(starts, sizes, strict=True)]

    def as_bytes(self) -> bytes:
        """Return them as an array of struct iovec."""
        return self._words.tobytes()


class RangeQueue:
    """Ranges that are taken from the front, so many bytes at a time."""

    def __init__(self, ranges: PackedRanges) -> None:
        self._words = array("Q", ranges._words)  # noqa: SLF001 - two halves of one subject
        self._next = 0

    def __bool__(self) -> bool:
        return self._next < len(self._words)

    def take(self, most_bytes: int, most_ranges: int) -> PackedRanges:
        """Take at most so many of the next ranges; one at least, or a part of it.

        A range larger than ``most_bytes`` is cut, on a 2 MiB boundary.
        """
        at = self._next
        start, size_bytes = self._words[at], self._words[at + 1]
        if size_bytes > most_bytes:
            cut = (start + most_bytes + _CUT_BYTES - 1) & -_CUT_BYTES
            if cut < start + size_bytes:
                self._words[at], self._words[at + 1] = cut, start + size_bytes - cut
                return PackedRanges(array("Q", (start, cut - start)), cut - start)
        sizes = self._words[at + 1 : at + 2 * most_ranges : 2]
        count, taken_bytes = len(sizes), sum(sizes)
        if taken_bytes > most_bytes:
            sums = list(itertools.accumulate(sizes))
            count = max(1, bisect.bisect(sums, most_bytes))
            taken_bytes = sums[count - 1]
        self._next = at + 2 * count
        return PackedRanges(self._words[at : self._next], taken_bytes)
