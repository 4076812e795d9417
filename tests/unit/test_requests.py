# SPDX-License-Identifier: GPL-2.0-or-later
"""What a request asks for, and every nonsense that is refused as such."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.daemon.requests import (
    MAX_RANGES,
    granule_of,
    names_ranges,
    node_of,
    parts_of,
    ranges_of,
    seconds_of,
    size_of,
    tid_of,
)
from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_NUMBERS: tuple[object, ...] = (
    -1,
    1.0,
    1.5,
    "1",
    "",
    True,
    False,
    [],
    [1],
    {},
    {"a": 1},
    float("nan"),
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a0x-", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=5,
)
_readers: list[Callable[[dict[str, Any]], object]] = [
    *(names_ranges, node_of, parts_of, size_of, tid_of, seconds_of, granule_of),
    lambda message: ranges_of(message, Granule.SMALL),
]


@pytest.mark.parametrize("value", [*_NO_NUMBERS, None, 1 << 63])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no size"):
        size_of({"size": value})


@pytest.mark.parametrize("value", [*_NO_NUMBERS, (1 << 20) + 1])
def test_what_is_no_node_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no node"):
        node_of({"node": value})


@pytest.mark.parametrize("value", [*_NO_NUMBERS, 0, (1 << 22) + 1])
def test_what_is_no_thread_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no thread"):
        tid_of({"tid": value})


@pytest.mark.parametrize(
    "value", [-1, -0.5, "1", True, False, [], {}, None, float("nan"), float("inf"), 1e10]
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no time"):
        seconds_of({"recent_s": value})


@pytest.mark.parametrize("value", [None, "4K", "", 4096, True, [], ["thp"], {}, "huge1g"])
def test_what_is_no_granule_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no granule"):
        granule_of({"granule": value})


@pytest.mark.parametrize(
    "rows",
    [[], {}, "ranges", 7, [[0, 4096]] * (MAX_RANGES + 1), [[0]], [[0, 1, 2]], [0, 4096], [None]]
    + [[[gpa, 4096]] for gpa in (*_NO_NUMBERS, None, 1 << 63)]
    + [[[0, size]] for size in (*_NO_NUMBERS, None, 1 << 63)],
)
def test_what_are_no_ranges_is_refused(rows: object) -> None:
    with pytest.raises(UsageError):
        ranges_of({"ranges": rows}, Granule.SMALL)


def test_a_range_without_its_half_is_refused() -> None:
    for message in ({}, {"gpa": 0}, {"size": 4096}, {"gpa": None, "size": None}):
        with pytest.raises(UsageError, match="no range"):
            ranges_of(message, Granule.SMALL)


@given(gpa=st.integers(0, 1 << 50), granule=st.sampled_from(Granule))
def test_a_gpa_between_granules_is_refused_with_the_next_one(gpa: int, granule: Granule) -> None:
    message = {"gpa": gpa, "size": granule.size_bytes}
    if gpa % granule.size_bytes == 0:
        assert ranges_of(message, granule) == [GpaRange.of(gpa, granule.size_bytes)]
        return
    with pytest.raises(RangeError, match="not aligned") as refused:
        ranges_of(message, granule)
    following = int(refused.value.hint.rpartition(" ")[2], 16)
    assert following % granule.size_bytes == 0
    assert 0 < following - gpa < granule.size_bytes


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 1 << 40)), min_size=1))
def test_several_ranges_keep_their_order(pairs: list[tuple[int, int]]) -> None:
    rows = [[page * PAGE_BYTES, size] for page, size in pairs]
    found = ranges_of({"ranges": rows, "gpa": 7}, Granule.SMALL)
    assert found == [GpaRange.of(gpa, size) for gpa, size in rows]


def test_parts_of_nodes_are_read_where_no_range_is_named() -> None:
    assert parts_of({"nodes": [[0, 4096], [3, None]]}) == [(0, 4096), (3, None)]
    assert parts_of({"node": 1, "size": 8192}) == [(1, 8192)]
    assert parts_of({"node": 1, "gpa": 0, "size": 8192}) == []
    assert parts_of({"nodes": []}) == []


@pytest.mark.parametrize(
    "nodes",
    [
        *(
            "1",
            1,
            {},
            [1],
            [[]],
            [[1]],
            [[1, 2, 3]],
            [[None, 1]],
            [["1", 1]],
            [[1, -1]],
            [[1, True]],
        ),
        [[1, 4096], [1, None]],
        [[node, None] for node in range(129)],
    ],
)
def test_what_is_no_part_of_a_node_is_refused(nodes: object) -> None:
    with pytest.raises(UsageError):
        parts_of({"nodes": nodes})


def test_what_is_not_given_is_everything() -> None:
    assert (node_of({}), tid_of({}), parts_of({})) == (None, None, [])
    assert (node_of({"node": 0}), tid_of({"tid": 1})) == (0, 1)
    assert parts_of({"node": 0}) == [(0, None)]
    assert (seconds_of({"recent_s": 0}), seconds_of({"recent_s": 2.5})) == (0, 2.5)
    assert [granule_of({"granule": granule.value}) for granule in Granule] == list(Granule)
    assert Granule.THP.size_bytes == HUGE_BYTES


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ({}, False),
        ({"size": 1}, False),
        ({"gpa": None}, False),
        ({"gpa": 0}, True),
        ({"ranges": []}, True),
        ({"node": 1}, False),
    ],
)
def test_a_request_names_its_memory_or_only_how_much(
    message: dict[str, object], *, names: bool
) -> None:
    assert names_ranges(message) is names


@given(
    st.dictionaries(
        st.sampled_from(("gpa", "size", "ranges", "node", "nodes", "tid", "recent_s", "granule")),
        _json,
    )
)
def test_whatever_a_request_says_is_read_or_refused_by_name(message: dict[str, Any]) -> None:
    for reader in _readers:
        with contextlib.suppress(UsageError):
            reader(message)
