# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges as an operator gives them: as options, and in files."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.cli.ranges import parse_range, ranges_in, read_ranges, requests_of
from uffdballoon.daemon.requests import MAX_RANGES
from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Granule.SMALL


def test_a_range_is_an_address_and_a_size() -> None:
    assert parse_range("0x8000000+64M") == GpaRange.of(0x8000000, 64 << 20)
    assert parse_range(" 4096 + 0x1000 ") == GpaRange.of(4096, 4096)


@pytest.mark.parametrize(
    "text", ["", "+", "0x1000", "0x1000-64M", "0x1000+", "+64M", "0x1000+64M+1", "x+1", "٤+64M"]
)
def test_what_is_no_range_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_range(text)
    assert refused.value.hint


def test_a_file_has_a_range_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "ranges"
    file.write_text("# ours\n\n0x8000000 64Mi\r\n\t4096  0x1000 # a page\n   # end")
    expected = [GpaRange.of(0x8000000, 64 << 20), GpaRange.of(4096, 4096)]
    assert read_ranges(str(file), SMALL) == expected


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"0x1000 4K\n")))
    assert read_ranges("-", SMALL) == [GpaRange.of(4096, 4096)]


@pytest.mark.parametrize(
    "line",
    [
        *("0x1000", "0x1000 4K 1", "4K 0x1000 #", "zz 4K", "0x1000 lots", "0x1001 4K", "0x1000 0"),
        *("0x1000+4K", "0x1000 ٤K", "\udcff 4K", "x" * 10_000),
    ],
)
def test_a_line_that_is_no_range_is_named_by_file_and_number(line: str) -> None:
    with pytest.raises(UsageError) as refused:
        list(ranges_in(f"0x1000 4K\n# fine\n{line}\n0x2000 4K\n", "some/file", SMALL))
    assert refused.value.what.startswith("some/file:3: ")
    assert refused.value.hint


def test_the_granule_is_that_of_the_command() -> None:
    assert list(ranges_in("0x1000 2M", "file", SMALL))
    with pytest.raises(RangeError, match=r"^file:1: .*not aligned"):
        list(ranges_in("0x1000 2M", "file", Granule.THP))
    assert list(ranges_in(f"{HUGE_BYTES} 2M", "file", Granule.THP))


@pytest.mark.parametrize("contents", [b"", b"\n# nothing\n"])
def test_a_file_without_a_range_is_refused(tmp_path: Path, contents: bytes) -> None:
    file = tmp_path / "ranges"
    file.write_bytes(contents)
    with pytest.raises(UsageError, match="names no range"):
        read_ranges(str(file), SMALL)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="cannot be read") as refused:
            read_ranges(str(path), SMALL)
        assert str(path) in refused.value.what


@given(st.text())
def test_whatever_a_file_says_is_read_or_refused_by_line(text: str) -> None:
    spans: list[GpaRange] = []
    with contextlib.suppress(UsageError):
        spans += ranges_in(text, "file", SMALL)
    assert all(span.start % PAGE_BYTES == 0 and span.size_bytes > 0 for span in spans)


@given(st.integers(0, 2 * MAX_RANGES + 1))
def test_requests_have_all_ranges_in_their_order_and_not_too_many(count: int) -> None:
    spans = [GpaRange.of(n * PAGE_BYTES, PAGE_BYTES) for n in range(count)]
    parts = list(requests_of(spans))
    assert [span for part in parts for span in part] == spans
    assert all(0 < len(part) <= MAX_RANGES for part in parts)
