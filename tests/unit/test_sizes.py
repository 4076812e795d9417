# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import UsageError
from uffdballoon.model.sizes import format_size, parse_address, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 64 << 10),
        ("64kib", 64 << 10),
        ("1.5G", 3 << 29),
        ("2 TiB", 2 << 40),
        ("64Mi", 64 << 20),
        ("2Gi", 2 << 30),
        ("0x400000", 4 << 20),
        ("0X1F", 31),
    ],
)
def test_sizes_are_read_as_powers_of_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        "1.3B",
        "1e3",
        "5 parsecs",
        "9999999P",
        "0x",
        "0x1M",
        "0x1.8",
        "0x" + "f" * 16,
        "\N{ARABIC-INDIC DIGIT SIX}4M",
        "i",
    ],
)
def test_what_is_no_size_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_size(text)
    assert refused.value.hint


@pytest.mark.parametrize("text", ["", "zz", "0x", "-1", "1_0", "0x1g", "9" * 30])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@given(st.text(max_size=40))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for parse in (parse_size, parse_address):
        with contextlib.suppress(UsageError):
            assert parse(text) >= 0


@given(st.integers(0, 1 << 40))
def test_a_formatted_whole_size_is_read_back(pages: int) -> None:
    text = format_size(pages * 4096)
    if "." not in text:
        assert parse_size(text) == pages * 4096


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [((1 << 20) - 1, "1.0 MiB"), ((1 << 30) - 1, "1.0 GiB"), ((1 << 20) - 60, "1023.9 KiB")],
)
def test_what_is_rounded_up_to_the_next_unit_is_written_in_it(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
