# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that takes several turns, so that whoever has a loop serves others meanwhile.

A job is a generator: it does a few milliseconds of its work, yields for how long it
stays away, and returns its report in the end. What it must put right it puts right in
its own ``finally``, so that a job that is closed in the middle leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Job: TypeAlias = Generator[float, None, T]
"""Yields seconds; returns what came of it, or raises a named error."""


def run_job(job: Job[T]) -> T:
    """Run a job to its end, for those who have no loop; return its report."""
    while True:
        try:
            away_s = next(job)
        except StopIteration as end:
            report: T = end.value
            return report
        time.sleep(away_s)


class Turn:
    """Says when a job has worked for long enough, and is to yield."""

    def __init__(self, seconds: float = 0.005) -> None:
        self._seconds = seconds
        self._over_at = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Tell whether the time is over; the next turn begins when it is."""
        now = time.monotonic()
        if now < self._over_at:
            return False
        self._over_at = now + self._seconds  # what comes after the yield
        return True
