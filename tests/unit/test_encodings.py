# SPDX-License-Identifier: GPL-2.0-or-later
"""What encodings of simulated balloons cost, against what was worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from uffdballoon.bench import encodings
from uffdballoon.bench.encodings import HALF, PIECES, SMALL
from uffdballoon.errors import UsageError

RAM_BYTES = 16 << 30


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return encodings.run(sizes=(RAM_BYTES,), progress=lambda _: None)


@pytest.fixture(scope="module")
def balloons(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["in_use"], row["balloon"]): row for row in result["series"]}


def test_a_guest_that_has_just_booted_gives_one_run(
    balloons: dict[tuple[str, str], dict[str, Any]],
) -> None:
    small = balloons["just booted", SMALL]
    assert (small["pages"], small["runs"], small["span_pages"]) == (1 << 20, 1, 1 << 20)
    assert small["orders"] == {10: 1024}
    assert small["wire_bytes"] == {
        "pfn_array": 4 << 20,  # 4 bytes for each of 2^20 pages
        "bitmap": 128 << 10,  # 2^20 bits
        "ram_bitmap": 512 << 10,  # 2^22 bits
        "range_list": 16,
        "order_list": 1024 * 8,
    }
    assert small["messages"] == 4096
    assert small["cheapest"] == "range_list"
    half = balloons["just booted", HALF]
    assert (half["pages"] << 12, half["runs"]) == (6 << 30, 1)


def test_pieces_of_2_mib_are_given_up_whole(
    balloons: dict[tuple[str, str], dict[str, Any]],
) -> None:
    small = balloons["2 MiB", SMALL]
    assert small["orders"].keys() <= {9, 10}  # of neighbours two are a block of 4 MiB
    assert small["orders"][9] + 2 * small["orders"].get(10, 0) == 2048
    assert small["wire_bytes"]["order_list"] == sum(small["orders"].values()) * 8
    assert small["wire_bytes"]["range_list"] == small["runs"] * 16


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("balloon", [SMALL, HALF])
def test_a_bitmap_is_less_than_page_numbers_where_a_page_in_32_is_given_up(
    pieces: str, balloon: str, balloons: dict[tuple[str, str], dict[str, Any]]
) -> None:
    row = balloons[pieces, balloon]
    wire = row["wire_bytes"]
    assert (wire["bitmap"] < wire["pfn_array"]) == (row["span_pages"] < 32 * row["pages"])
    assert wire["bitmap"] <= wire["ram_bitmap"]
    assert sum(count << order for order, count in row["orders"].items()) == row["pages"]
    assert wire[row["cheapest"]] == min(wire.values())


def test_the_more_fragmented_the_more_runs(
    balloons: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for balloon in (SMALL, HALF):
        runs = [balloons[pieces, balloon]["runs"] for pieces in PIECES]
        assert runs == sorted(runs)


def test_the_table_and_the_ratios_are_of_the_series(result: dict[str, Any]) -> None:
    assert [len(row) for row in encodings.rows(result)] == [len(encodings.HEADER)] * 8
    assert (
        result["ratios"]["bitmap of array: 16 GiB, in use: just booted, balloon: 4 GiB"] == 1 / 32
    )


def test_the_same_guest_gives_up_the_same_pages() -> None:
    first, again = (list(encodings.simulate(RAM_BYTES, "mixed")) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("size_bytes", [1 << 30, (4 << 40) + 1])
def test_a_guest_that_is_too_small_or_too_large_is_refused(size_bytes: int) -> None:
    with pytest.raises(UsageError, match="no guest of"):
        encodings.run(sizes=(size_bytes,), progress=lambda _: None)
