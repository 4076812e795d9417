# SPDX-License-Identifier: GPL-2.0-or-later
"""What a request asks for, read from its JSON; each raises UsageError for nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.addresses import GpaRange, round_up
from uffdballoon.model.granule import Granule
from uffdballoon.model.ofnodes import MOST_NODES, refuse_twice
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_RANGES = 1000
MAX_TOLD_RANGES = 100_000
_MOST_BYTES = 1 << 62  # more than any address space
_MOST_NODE = 1 << 20
_MOST_TID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_MOST_SECONDS = 1e9
MOST_YIELD_NS = 24 * 3600 * 10**9


def names_ranges(message: Mapping[str, Any]) -> bool:
    """Tell whether a request says which memory it is about, and not just how much."""
    return message.get("gpa") is not None or message.get("ranges") is not None


def ranges_of(message: Mapping[str, Any], granule: Granule) -> list[GpaRange]:
    """Read the ranges of guest memory: ``gpa`` and ``size``, or ``ranges`` of such pairs.

    Raises RangeError for one that is not aligned to the granule.
    """
    rows = message.get("ranges")
    if rows is None:
        rows = [[message.get("gpa"), message.get("size")]]
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_RANGES:
        raise UsageError("those are no ranges", why=f"1 to {MAX_RANGES} pairs of gpa and size are")
    return [_range_of(row, granule) for row in rows]


def _range_of(row: object, granule: Granule) -> GpaRange:
    if not isinstance(row, list) or [_is_whole(n, _MOST_BYTES) for n in row] != [True, True]:
        raise UsageError("that is no range", why="gpa and size are whole numbers of bytes")
    gpa, size_bytes = row
    return aligned_range(gpa, size_bytes, granule)


def aligned_range(gpa: int, size_bytes: int, granule: Granule) -> GpaRange:
    """Make a range; raise RangeError where its beginning is no multiple of the granule.

    A decimal number where a hexadecimal one was meant hardly ever is.
    """
    if gpa % granule.size_bytes:
        raise RangeError(
            f"gpa {gpa:#x} is not aligned to the granule",
            why=f"granules are {format_size(granule.size_bytes)}; {gpa} is {gpa:#x}",
            hint=f"hexadecimal begins with 0x; the next granule is at "
            f"{round_up(gpa, granule.size_bytes):#x}",
        )
    return GpaRange.of(gpa, size_bytes)


def node_of(message: Mapping[str, Any]) -> int | None:
    """Read which NUMA node of the guest a request is about, if it says."""
    node = message.get("node")
    if node is not None and not _is_whole(node, _MOST_NODE):
        raise UsageError("that is no node", why="a node is a number, 0 or more")
    return node


def parts_of(message: Mapping[str, Any]) -> list[tuple[int, int | None]]:
    """Read of which nodes a request is about how many bytes, None for all; none with ranges.

    ``nodes`` are such pairs; ``node`` and ``size`` are one.
    """
    if names_ranges(message):
        return []
    rows = message.get("nodes")
    if rows is None:
        node = node_of(message)
        rows = [] if node is None else [[node, message.get("size")]]
    if not isinstance(rows, list) or len(rows) > MOST_NODES:
        raise UsageError(
            "those are no nodes", why=f"at most {MOST_NODES} pairs of node and size are"
        )
    parts = [_part_of(row) for row in rows]
    refuse_twice("a part", parts)
    return parts


def _part_of(row: object) -> tuple[int, int | None]:
    if not isinstance(row, list) or len(row) != len(("node", "size")):
        raise UsageError("that is no part of a node", why="a node and a size are, or null")
    node = node_of({"node": row[0]})
    if node is None:
        raise UsageError("that is no node", why="a node is a number, 0 or more")
    return node, None if row[1] is None else size_of({"size": row[1]})


def size_of(message: Mapping[str, Any]) -> int:
    """Read a size in bytes."""
    size: Any = message.get("size")
    if not _is_whole(size, _MOST_BYTES):
        raise UsageError("that is no size", why="a size is a whole number of bytes")
    return int(size)


def most_of(message: Mapping[str, Any]) -> int:
    """Read how many ranges are to be told at most."""
    most: Any = message.get("most")
    if not _is_whole(most, MAX_TOLD_RANGES):
        raise UsageError("that is no number of ranges", why=f"most is 0 to {MAX_TOLD_RANGES}")
    return int(most)


def tid_of(message: Mapping[str, Any]) -> int | None:
    """Read which thread a request is about, None for all."""
    tid = message.get("tid")
    if tid is not None and (tid == 0 or not _is_whole(tid, _MOST_TID)):
        raise UsageError("that is no thread", why=f"a thread id is a number from 1 to {_MOST_TID}")
    return tid


def yield_of(message: Mapping[str, Any]) -> int:
    """Read for how long traps are to be lifted, in nanoseconds."""
    for_ns: Any = message.get("for_ns")
    if for_ns == 0 or not _is_whole(for_ns, MOST_YIELD_NS):
        raise UsageError(
            "traps are not lifted for so long",
            why="it is for 24 hours at most, and for a nanosecond at least",
            hint="detach lets go for good",
        )
    return int(for_ns)


def seconds_of(message: Mapping[str, Any]) -> float:
    """Read a time that is long ago at most."""
    seconds: Any = message.get("recent_s")
    if type(seconds) not in (int, float) or not 0 <= seconds <= _MOST_SECONDS:
        raise UsageError("that is no time", why="recent_s is a number of seconds, 0 or more")
    return float(seconds)


def granule_of(message: Mapping[str, Any]) -> Granule:
    """Read in which granule memory is taken or given."""
    granule = message.get("granule")
    try:
        return Granule(granule)
    except ValueError as error:
        raise UsageError(
            f"{granule!r} is no granule", why="granules are 4k, thp and huge2m"
        ) from error


def _is_whole(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
