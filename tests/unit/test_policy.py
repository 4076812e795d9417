# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import UsageError
from uffdballoon.model.ladder import Rung, RungKind
from uffdballoon.model.policy import DEFAULT_POLICY, Policy, parse_policy


@pytest.mark.parametrize(
    "text",
    [
        "observe",
        "kill",
        "poison",
        "pause",
        "freeze",
        "zero-read,observe",
        "zero-read,freeze=5s,kill",
        "throttle=1000/s:16384",
        "zero-read,throttle=1000/s:16384,freeze=1500ns,pause",
    ],
)
def test_a_ladder_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_policy(text)) == text


def test_the_default_harms_nobody() -> None:
    assert Policy((Rung(RungKind.ZERO_READ), Rung(RungKind.OBSERVE))) == DEFAULT_POLICY
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
        ("zero-read,freeze=5", 19),
        ("freeze,kill", 8),
        ("freeze=,kill", 8),
        ("freeze=long,kill", 8),
        ("observe=3", 9),
        ("throttle", 9),
        ("throttle=1000", 14),
        ("throttle=x/s", 10),
        ("throttle=0/s", 10),
        ("throttle=1/s:1K", 14),
        ("throttle=1/s:", 14),
        ("zero-read, throttle=1/s:9Q,kill", 25),
    ],
)
def test_an_error_points_at_the_character(text: str, character: int) -> None:
    with pytest.raises(UsageError) as refused:
        parse_policy(text)
    assert f"at character {character}:" in refused.value.why


def test_a_throttle_is_in_pages_or_bytes() -> None:
    (by_pages,) = parse_policy("throttle=1000/s:64MiB").rungs
    (by_bytes,) = parse_policy("throttle=4000K/s:64M").rungs
    assert by_pages == by_bytes == Rung(RungKind.THROTTLE, pages_per_s=1000, burst_pages=16384)
    (a_second_of_burst,) = parse_policy("throttle=1000/s").rungs
    assert a_second_of_burst.burst_pages == 1000


def test_a_freeze_has_an_end_or_is_the_end() -> None:
    (until_released,) = parse_policy("freeze").rungs
    assert until_released.hold_ns is None
    bounded, _ = parse_policy("freeze=2.5s,kill").rungs
    assert bounded.hold_ns == 2_500_000_000


@given(st.text(alphabet="observekilzradtfupsn0123456789-,=/:. ", max_size=60))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        policy = parse_policy(text)
        assert parse_policy(str(policy)) == policy


_RUNGS = st.sampled_from(
    ["zero-read", "throttle=7/s", "throttle=1M/s:3", "freeze=3ms", "freeze", "observe", "poison"]
)


@given(st.lists(_RUNGS, min_size=1, max_size=4))
def test_what_is_accepted_answers_every_touch_and_no_rung_is_out_of_reach(
    words: list[str],
) -> None:
    with contextlib.suppress(UsageError):
        policy = parse_policy(",".join(words))
        assert not any(rung.is_final for rung in policy.rungs[:-1])
        assert policy.rungs[-1].may_be_last


def test_a_freeze_of_many_nanoseconds_is_read_as_it_is_written() -> None:
    ladder = parse_policy("freeze=1000.000000001s,observe")
    assert parse_policy(str(ladder)) == ladder
