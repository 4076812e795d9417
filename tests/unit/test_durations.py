# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import UsageError
from uffdballoon.model.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("5", 5_000_000_000),
        ("2.5s", 2_500_000_000),
        ("500ms", 500_000_000),
        ("10us", 10_000),
        ("7ns", 7),
        ("2m", 120_000_000_000),
        ("1 h", 3_600_000_000_000),
    ],
)
def test_a_duration_is_read_in_its_unit(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "1 week", "0", "0.1ns", "1e3", "9" * 12 + "h", "1.5.2"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@given(st.text(max_size=20))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_duration(text) > 0
