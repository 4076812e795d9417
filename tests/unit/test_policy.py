# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.contract.policy import DEFAULT_POLICY, Policy, parse_policy
from uffdballoon.errors import UffdballoonError, UnsupportedError, UsageError
from uffdballoon.model.touch import Action


@pytest.mark.parametrize("text", ["observe", "kill", "zero-read,observe", "zero-read,kill"])
def test_a_ladder_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_policy(text)) == text


def test_the_default_harms_nobody() -> None:
    assert Policy((Action.ZERO_READ, Action.GRANT)) == DEFAULT_POLICY
    assert str(DEFAULT_POLICY) == "zero-read,observe"


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("", 1),
        ("zero-read", 10),
        ("zero-read, shout", 12),
        ("observe,kill", 9),
        ("zero-read,zero-read,kill", 11),
        ("zero-read,,kill", 11),
    ],
)
def test_an_error_points_at_the_character(text: str, character: int) -> None:
    with pytest.raises(UsageError) as refused:
        parse_policy(text)
    assert f"at character {character}:" in refused.value.why


def test_a_rung_to_come_is_refused_and_not_ignored() -> None:
    with pytest.raises(UnsupportedError):
        parse_policy("zero-read,freeze=5s,kill")


@given(st.text(alphabet="observekilzrad-,= ", max_size=40))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with contextlib.suppress(UffdballoonError):
        assert parse_policy(text).rungs
