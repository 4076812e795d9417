# SPDX-License-Identifier: GPL-2.0-or-later
"""Moments as people write them, and as events are shown with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.cli.text.times import written_time
from uffdballoon.errors import UsageError
from uffdballoon.model.moments import parse_moment

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW_NS = 1_800_000_000 * 10**9


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be two hours east of Greenwich."""
    monkeypatch.setenv("TZ", "XXX-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("text", "ago_s"), [("10m", 600), ("90s", 90), ("1.5h", 5400), ("5", 5)])
def test_a_duration_is_so_long_ago(text: str, ago_s: int) -> None:
    assert parse_moment(text, NOW_NS) == NOW_NS - ago_s * 10**9


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2027-01-15T08:00:00Z", 1_800_000_000),
        ("2027-01-15 09:00:00+01:00", 1_800_000_000),
        ("2027-01-15T10:00", 1_800_000_000),
        ("2027-01-15", 1_800_000_000 - 10 * 3600),
    ],
)
def test_a_time_has_its_zone_or_else_the_hosts(text: str, seconds: int) -> None:
    assert parse_moment(text, NOW_NS) == seconds * 10**9


@given(st.integers(0, 4 * 10**18))
def test_a_time_that_was_written_is_read_as_the_same_microsecond(time_ns: int) -> None:
    assert parse_moment(written_time(time_ns), NOW_NS) == time_ns // 1000 * 1000


@pytest.mark.parametrize(
    "text", ["", "yesterday", "10 parsecs", "2026-13-01", "25:00", "-10m", "٢m", "0001-01-01T00:00"]
)
def test_what_is_no_time_is_refused_with_a_hint(text: str) -> None:
    if text.startswith("0001"):
        assert parse_moment(text + "Z", NOW_NS) < 0
        return
    with pytest.raises(UsageError) as refused:
        parse_moment(text, NOW_NS)
    assert refused.value.hint
