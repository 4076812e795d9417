# SPDX-License-Identifier: GPL-2.0-or-later
"""Moments as a person reads them, and as `events --since` takes them."""

from __future__ import annotations

import datetime as dt

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def written_time(time_ns: int) -> str:
    """Write ns since 1970 as date and time in UTC, microseconds rounded down."""
    moment = _EPOCH + dt.timedelta(microseconds=time_ns // 1000)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
