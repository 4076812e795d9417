# SPDX-License-Identifier: GPL-2.0-or-later
"""Moments as people write them: a date with a time, or how long ago."""

from __future__ import annotations

import datetime as dt

from uffdballoon.errors import UsageError
from uffdballoon.model.durations import parse_duration

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


def parse_moment(text: str, now_ns: int) -> int:
    """Read an ISO 8601 time, in this host's zone without one of its own, or a duration ago.

    Returns ns since 1970. Raises UsageError.
    """
    try:
        return now_ns - parse_duration(text)
    except UsageError:
        pass
    try:
        moment = dt.datetime.fromisoformat(text.strip()).astimezone(dt.UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is not a time",
            why="a time is a date with a time of the day, or how long ago it was",
            hint="write it like 2026-01-31T12:00:00Z, 2026-01-31, 10m or 90s",
        ) from error
    return (moment - _EPOCH) // _MICROSECOND * 1000
