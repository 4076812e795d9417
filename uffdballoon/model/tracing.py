# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace of a balloon: the pages of each inflate and deflate, in a file and read again.

The file has a line of JSON for the guest, and one for each change, the oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.fragments import fragments_of
from uffdballoon.model.records.encoding import parse, to_json
from uffdballoon.model.records.statistics import RecordedChange, RecordedTrace, TracedGuest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.fragments import Fragments

FORMAT = "uffdballoon trace 1"
_MAX_BYTES = 1 << 62  # more than any address space: numbers beyond are nobody's memory
_MAX_NS = 1 << 63

Runs = tuple[tuple[int, int], ...]


def write_trace(recorded: RecordedTrace) -> str:
    """Return the text of the file."""
    guest = TracedGuest(format=FORMAT, ram_bytes=recorded.ram_bytes, left_out=recorded.left_out)
    return "".join(to_json(line) + "\n" for line in (guest, *recorded.changes))


def read_trace(text: str) -> RecordedTrace:
    """Read what write_trace() wrote; raise UsageError that names the line of anything else."""
    lines = text.splitlines()
    if not lines:
        _refuse(1, "there is nothing in it")
    guest = _object(1, lines[0])
    if guest.get("format") != FORMAT:
        _refuse(1, f"its format is not {FORMAT!r}")
    return RecordedTrace(
        ram_bytes=_number(1, guest, "ram_bytes", PAGE_BYTES, _MAX_BYTES),
        left_out=_number(1, guest, "left_out", 0, _MAX_NS),
        changes=tuple(_change(number, line) for number, line in enumerate(lines[1:], start=2)),
    )


def _change(number: int, line: str) -> RecordedChange:
    value = _object(number, line)
    return RecordedChange(
        time_ns=_number(number, value, "time_ns", 0, _MAX_NS),
        inflated=_runs(number, value.get("inflated")),
        deflated=_runs(number, value.get("deflated")),
    )


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        value = parse(line)
    except (ValueError, RecursionError):
        _refuse(number, "it is no JSON")
    if not isinstance(value, dict):
        _refuse(number, "it is no object of JSON")
    return value


def _number(number: int, value: dict[str, Any], key: str, least: int, most: int) -> int:
    found = value.get(key)
    if type(found) is not int or not least <= found <= most:
        _refuse(number, f"its {key} is missing, or is out of reason")
    return found


def _runs(number: int, rows: object) -> Runs:
    """Read runs of (first page, pages), sorted."""
    if not isinstance(rows, list):
        _refuse(number, "it has no lists of runs, inflated and deflated")
    runs = []
    at = 0
    for row in rows:
        if not (isinstance(row, list) and [type(n) for n in row] == [int, int]):
            _refuse(number, f"{str(row)[:40]} is no run")
        start, pages = row
        if start < at or pages < 1 or max(start, pages) > _MAX_BYTES // PAGE_BYTES:
            _refuse(number, f"{str(row)[:40]} is empty, too much, or not behind the one before it")
        at = start + pages
        runs.append((start, pages))
    return tuple(runs)


def _refuse(number: int, why: str) -> NoReturn:
    raise UsageError(
        "that is no trace of a balloon",
        why=f"line {number}: {why}",
        hint="make one with: uffdballoon stats PID --trace FILE",
    )


@dataclass(frozen=True, slots=True)
class Replayed:
    """A part of a change: what it is called, and what it is made of."""

    name: str
    fragments: Fragments


def replay(recorded: RecordedTrace) -> Iterator[Replayed]:
    """Measure each inflate and deflate, numbered as they came."""
    for what in ("inflate", "deflate"):
        parts = [getattr(change, f"{what}d") for change in recorded.changes]
        for number, runs in enumerate(filter(None, parts), start=1):
            yield Replayed(f"{what} {number}", fragments_of(runs))
