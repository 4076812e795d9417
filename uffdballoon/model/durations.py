# SPDX-License-Identifier: GPL-2.0-or-later
"""Durations as people write them."""

from __future__ import annotations

import re

from uffdballoon.errors import UsageError

_DURATION = re.compile(r"(?P<number>\d{1,19}(?:\.\d{1,9})?)\s*(?P<unit>[a-z]*)", re.ASCII)
_UNITS_NS = {
    "": 10**9,
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
}
_MAX_NS = 10**18


def parse_duration(text: str) -> int:
    """Read a duration such as ``5``, ``2.5s``, ``500ms`` or ``2m``; seconds without a unit.

    Returns whole nanoseconds, at least 1. Raises UsageError.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    unit_ns = _UNITS_NS.get(match["unit"]) if match else None
    if match is None or unit_ns is None:
        raise UsageError(
            f"{text!r} is not a duration",
            why="a duration is a number and an optional unit",
            hint="write it like 5, 2.5s, 500ms or 2m",
        )
    whole, _, fraction = match["number"].partition(".")
    duration_ns = int(whole + fraction) * unit_ns // int(10 ** len(fraction))
    if not 1 <= duration_ns <= _MAX_NS:
        raise UsageError(
            f"{text!r} is no useful duration",
            why="it is shorter than a nanosecond, or longer than thirty years",
            hint="check the unit",
        )
    return duration_ns


def format_duration(duration_ns: int) -> str:
    """Write nanoseconds as parse_duration() reads them back."""
    seconds, rest_ns = divmod(duration_ns, 10**9)
    return f"{duration_ns}ns" if rest_ns else f"{seconds}s"
