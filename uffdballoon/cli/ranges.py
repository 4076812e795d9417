# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of guest memory as an operator gives them: one, several, or a file of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.daemon.requests import MAX_RANGES, aligned_range
from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.sizes import parse_address, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from uffdballoon.model.granule import Granule

STDIN = "-"
_WORDS = 2
_MOST_SHOWN = 40


def parse_range(text: str) -> GpaRange:
    """Read a range such as ``0x8000000+64M``; raise UsageError for anything else."""
    gpa, plus, size = text.partition("+")
    if not plus:
        raise UsageError(
            f"{text[:_MOST_SHOWN]!r} is not a range",
            why="a range is an address and a size with a + between them",
            hint="write it like 0x8000000+64M",
        )
    return GpaRange.of(parse_address(gpa), parse_size(size))


def read_ranges(path: str, granule: Granule) -> list[GpaRange]:
    """Read a file with a line of gpa and size for each range; ``-`` is standard input.

    What comes after a # is a comment. Raises UsageError, with file and line, for a line that is
    no range, and for a file that cannot be read or names none.
    """
    try:
        text = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"the ranges in {path!r} cannot be read",
            why=error.strerror or str(error),
            hint=f"give a file with a line of GPA SIZE for each range, or {STDIN}",
        ) from error
    ranges = list(ranges_in(text.decode(errors="backslashreplace"), path, granule))
    if not ranges:
        raise UsageError(
            f"{path!r} names no range",
            why="it is empty, or all comments",
            hint="give a file with a line of GPA SIZE for each range",
        )
    return ranges


def ranges_in(text: str, name: str, granule: Granule) -> Iterator[GpaRange]:
    """Read lines of gpa and size; raise UsageError with ``name`` and the line's number."""
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            yield _range_of(words, granule)
        except UsageError as error:
            kind = type(error)
            raise kind(f"{name}:{number}: {error.what}", why=error.why, hint=error.hint) from error


def requests_of(ranges: Sequence[GpaRange]) -> Iterator[list[GpaRange]]:
    """Yield the ranges in parts that a request may have."""
    for first in range(0, len(ranges), MAX_RANGES):
        yield list(ranges[first : first + MAX_RANGES])


def refuse_unaligned(ranges: Iterable[GpaRange], granule: Granule) -> None:
    """Raise RangeError for a range that does not begin at a granule."""
    for span in ranges:
        aligned_range(span.start, span.size_bytes, granule)


def _range_of(words: Sequence[str], granule: Granule) -> GpaRange:
    if len(words) != _WORDS:
        raise UsageError(
            f"{' '.join(words)[:_MOST_SHOWN]!r} is not a range",
            why=f"a line has an address and a size; this one has {len(words)} word(s)",
            hint="write it like: 0x8000000 64M",
        )
    gpa, size_bytes = parse_address(words[0]), parse_size(words[1])
    if not size_bytes:
        raise RangeError(
            f"{words[0][:_MOST_SHOWN]!r} is of an empty range",
            why="its size is 0",
            hint="give a size above 0",
        )
    return aligned_range(gpa, size_bytes, granule)
