# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace of inflates and deflates: written, read again, replayed, and refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.bench import encodings
from uffdballoon.errors import UsageError
from uffdballoon.model.records.statistics import RecordedChange, RecordedTrace, WireBytes
from uffdballoon.model.tracing import FORMAT, read_trace, replay, write_trace

GUEST = {"format": FORMAT, "ram_bytes": 1 << 30, "left_out": 0}
CHANGE = {"time_ns": 1, "inflated": [[0, 512], [1024, 1]], "deflated": []}
HEADER = json.dumps(GUEST)


def text_of(*lines: object) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def apart(lengths: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    runs, at = [], 0
    for gap, pages in lengths:
        runs.append((at + gap, pages))
        at += gap + pages
    return tuple(runs)


some_runs = st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000))).map(apart)
traces = st.builds(
    RecordedTrace,
    ram_bytes=st.integers(4096, 1 << 50),
    left_out=st.integers(0, 1000),
    changes=st.lists(
        st.builds(
            RecordedChange,
            time_ns=st.integers(0, 1 << 62),
            inflated=some_runs,
            deflated=some_runs,
        ),
        max_size=5,
    ).map(tuple),
)


@given(traces)
def test_a_trace_is_read_as_it_was_written(trace: RecordedTrace) -> None:
    assert read_trace(write_trace(trace)) == trace


@given(traces)
def test_each_inflate_and_deflate_is_replayed_with_all_its_pages(trace: RecordedTrace) -> None:
    parts = {part.name: part.fragments for part in replay(trace)}
    for what in ("inflate", "deflate"):
        of_kind = [f"{what}d" for _ in trace.changes]
        wanted = [
            sum(pages for _, pages in getattr(change, name))
            for change, name in zip(trace.changes, of_kind, strict=True)
        ]
        found = [part.pages for name, part in parts.items() if name.startswith(what)]
        assert found == [pages for pages in wanted if pages]


def test_what_a_replayed_inflate_costs_is_as_by_hand() -> None:
    (part,) = replay(read_trace(text_of(GUEST, CHANGE)))
    assert part.name == "inflate 1"
    assert part.fragments.orders == {9: 1, 0: 1}
    assert part.fragments.wire_bytes == WireBytes(
        pfn_array=513 * 4, bitmap=(1025 + 7) // 8, range_list=2 * 16, order_list=2 * 8
    )


def test_traces_are_compared_without_a_guest_that_is_simulated() -> None:
    trace = read_trace(text_of(GUEST, CHANGE, {**CHANGE, "inflated": [], "deflated": [[3, 2]]}))
    result = encodings.run(sizes=(), traces={"t": trace}, progress=lambda _: None)
    assert [row["name"] for row in result["recorded"]] == ["t, inflate 1", "t, deflate 1"]
    assert result["series"] == []
    assert result["ratios"] == {}
    assert result["recorded"][0]["wire_bytes"]["ram_bitmap"] == (1 << 30) // 4096 // 8
    assert len(encodings.rows(result)) == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("\0\xff", 1),
        ("[" * 100_000, 1),
        ("[]", 1),
        (text_of({**GUEST, "format": "uffdballoon balloon 1"}), 1),
        (text_of({**GUEST, "ram_bytes": "1G"}), 1),
        (text_of({**GUEST, "ram_bytes": True}), 1),
        (text_of({**GUEST, "ram_bytes": 10**4299}), 1),
        (text_of({**GUEST, "left_out": -1}), 1),
        (HEADER + "\n" + json.dumps(CHANGE)[:-9], 2),
        (text_of(GUEST, CHANGE, []), 3),
        (text_of(GUEST, {**CHANGE, "time_ns": None}), 2),
        (text_of(GUEST, {"time_ns": 1, "inflated": []}), 2),
        (text_of(GUEST, {**CHANGE, "deflated": [[0]]}), 2),
        (text_of(GUEST, {**CHANGE, "deflated": [[0, 0]]}), 2),
        (text_of(GUEST, {**CHANGE, "deflated": [[-1, 1]]}), 2),
        (text_of(GUEST, {**CHANGE, "deflated": [[4, 2], [5, 1]]}), 2),
        (text_of(GUEST, {**CHANGE, "deflated": [[0, 10**4299]]}), 2),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(UsageError, match="no trace") as refused:
        read_trace(text)
    assert f"line {line}:" in str(refused.value.why)
