# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes, durations, ladders, ranges and rounding: what holds for all of them."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.guest_ram import layout_of, ram_block
from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.addresses import (
    HUGE_BYTES,
    PAGE_BYTES,
    Gpa,
    GpaRange,
    Hva,
    HvaRange,
    round_down,
    round_up,
)
from uffdballoon.model.durations import parse_duration
from uffdballoon.model.fragmentation import parse_broken
from uffdballoon.model.granule import Granule, round_inward
from uffdballoon.model.ladder import Rung, RungKind
from uffdballoon.model.ofnodes import MOST_NODES, parse_node_part, parse_of_node, refuse_twice
from uffdballoon.model.policy import Policy, parse_policy
from uffdballoon.model.ram import Layout, Segment, merge_hva_ranges
from uffdballoon.model.sizes import format_size, parse_address, parse_size
from uffdballoon.model.terms import Terms

_BYTES = 1 << 62
_UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_ranges = st.builds(
    lambda start, size: HvaRange.of(start * PAGE_BYTES, size * PAGE_BYTES),
    st.integers(0, 64),
    st.integers(0, 16),
)


@given(st.integers(0, _BYTES))
def test_a_number_of_bytes_is_a_size_and_an_address_in_each_notation(size_bytes: int) -> None:
    for text in (f"{size_bytes}", f"{size_bytes:#x}", f" {size_bytes:#X} "):
        assert parse_size(text) == size_bytes
        assert parse_address(text) == size_bytes


@given(whole=st.integers(0, 1000), eighths=st.integers(0, 7), unit=st.sampled_from("KMGT"))
def test_fractions_that_come_out_even_are_exact(whole: int, eighths: int, unit: str) -> None:
    number = Fraction(whole * 8 + eighths, 8)
    expected = number * 1024 ** ("KMGT".index(unit) + 1)
    for suffix in ("", "i", "B", "iB"):
        assert parse_size(f"{float(number)}{unit}{suffix}") == expected


@given(st.integers(0, 1 << 49))
def test_a_size_for_a_person_is_below_the_next_unit_and_near(size_bytes: int) -> None:
    number, unit = format_size(size_bytes).split()
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert 0 <= float(number) < 1024
    assert abs(float(number) * factor - size_bytes) <= factor * 0.0500001
    assert (float(number) >= 1) is (size_bytes >= 1)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        ((1 << 20) - 52, "1023.9 KiB"),
        (1 << 51, "2048 TiB"),
        (-4096, "-4 KiB"),
    ],
)
def test_sizes_for_a_person(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(
    number=st.integers(1, 9999), thousandths=st.integers(0, 999), unit=st.sampled_from([*_UNITS_NS])
)
def test_a_duration_is_cut_off_to_nanoseconds(number: int, thousandths: int, unit: str) -> None:
    expected = (number * 1000 + thousandths) * _UNITS_NS[unit] // 1000
    assert parse_duration(f"{number}.{thousandths:03}{unit}") == expected
    assert parse_duration(f" {number}.{thousandths:03} {unit.upper()} ") == expected


@st.composite
def _ladders(draw: st.DrawFn) -> Policy:
    """Draw ladders as they may be: each rung once, and one at the end that answers all."""
    first: list[Rung] = []
    if draw(st.booleans()):
        first.append(Rung(RungKind.ZERO_READ))
    pages = st.integers(1, 1 << 49)
    throttle = Rung(RungKind.THROTTLE, pages_per_s=draw(pages), burst_pages=draw(pages))
    freeze = Rung(RungKind.FREEZE, draw(st.integers(1, 10**18)))
    between = draw(st.permutations([throttle, freeze]))[: draw(st.integers(0, 2))]
    kinds = (RungKind.OBSERVE, RungKind.PAUSE, RungKind.POISON, RungKind.KILL)
    return Policy((*first, *between, Rung(draw(st.sampled_from(kinds)))))


@given(_ladders())
def test_a_ladder_is_read_as_it_is_written(policy: Policy) -> None:
    assert parse_policy(str(policy)) == policy
    assert parse_policy(f" {str(policy).replace(',', ' , ')} ") == policy


@given(_ladders())
def test_a_ladder_harms_where_a_rung_does(policy: Policy) -> None:
    harmful = {RungKind.FREEZE, RungKind.PAUSE, RungKind.POISON, RungKind.KILL}
    assert policy.harms is bool(harmful & {rung.kind for rung in policy.rungs})
    assert policy.holds >= policy.harms
    assert policy.rungs[-1].may_be_last
    assert not any(rung.is_final for rung in policy.rungs[:-1])


@pytest.mark.parametrize(
    "text",
    [
        *("throttle=1", "throttle=/s", "throttle=1/s:", "throttle=0/s", "throttle=1B/s"),
        *("throttle", "freeze=", "freeze=0s", "freeze=x", "observe=1", "zero-read=on,observe"),
        *("throttle=4611686018427387904/s", "kill,observe", "observe,observe", "OBSERVE"),
        ",observe",
    ],
)
def test_values_that_a_rung_cannot_have_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no ladder") as refused:
        parse_policy(text)
    assert re.match(r"at character \d+: ", refused.value.why)


@given(value=st.integers(0, 1 << 62), power=st.integers(0, 30))
def test_rounding_ends_at_a_multiple_and_goes_no_further(value: int, power: int) -> None:
    unit = 1 << power
    down, up = round_down(value, unit), round_up(value, unit)
    assert down % unit == up % unit == 0
    assert value - unit < down <= value <= up < value + unit


@given(span=_ranges, granule=st.sampled_from(Granule), base=st.integers(0, 4 * HUGE_BYTES))
def test_rounding_inward_loses_no_byte(span: HvaRange, granule: Granule, base: int) -> None:
    whole, left = round_inward(span, granule, base)
    assert (whole.size_bytes if whole else 0) + sum(p.size_bytes for p in left) == span.size_bytes
    assert all(piece.size_bytes < granule.size_bytes for piece in left if whole)
    if whole:
        assert (whole.start - base) % granule.size_bytes == 0
        assert (whole.end - base) % granule.size_bytes == 0


@given(span=_ranges, size_pages=st.integers(1, 20))
def test_pieces_of_a_range_are_all_of_it(span: HvaRange, size_pages: int) -> None:
    pieces = list(span.pieces(size_pages * PAGE_BYTES))
    assert sum(piece.size_bytes for piece in pieces) == span.size_bytes
    assert all(0 < piece.size_bytes <= size_pages * PAGE_BYTES for piece in pieces)
    assert [p.start for p in pieces[1:]] == [p.end for p in pieces[:-1]]


@given(st.lists(_ranges.filter(lambda span: span.size_bytes), max_size=10))
def test_merged_ranges_are_sorted_apart_and_of_the_same_pages(spans: list[HvaRange]) -> None:
    def pages(of: list[HvaRange]) -> set[int]:
        return {at for span in of for at in range(span.start, span.end, PAGE_BYTES)}

    merged = merge_hva_ranges(spans)
    assert pages(merged) == pages(spans)
    assert all(a.end < b.start for a, b in itertools.pairwise(merged))
    assert merge_hva_ranges(merged) == merged


@given(one=_ranges, other=_ranges)
def test_ranges_overlap_where_they_share_a_byte(one: HvaRange, other: HvaRange) -> None:
    shared = set(range(one.start, one.end, PAGE_BYTES)) & set(
        range(other.start, other.end, PAGE_BYTES)
    )
    if one.size_bytes and other.size_bytes:
        assert one.overlaps(other) is other.overlaps(one) is bool(shared)


@given(st.permutations(range(5)))
def test_a_layout_is_in_order_of_its_gpa_however_it_is_made(order: list[int]) -> None:
    in_order = layout_of(*(ram_block(number) for number in range(5))).segments
    layout = Layout(tuple(in_order[number] for number in order), source="made up")
    assert layout.segments == in_order
    assert layout.blocks == tuple(segment.block for segment in in_order)


@given(st.integers(-PAGE_BYTES, 6 * 16 * HUGE_BYTES))
def test_an_address_is_in_the_segment_that_holds_it_or_in_none(at: int) -> None:
    block = ram_block(huge_pages=16)
    layout = Layout(
        (
            Segment(Gpa(0), 8 * HUGE_BYTES, block, 0),
            Segment(Gpa(32 * HUGE_BYTES), 8 * HUGE_BYTES, block, 8 * HUGE_BYTES),
        ),
        source="made up",
    )
    there = 0 <= at < 8 * HUGE_BYTES or 32 * HUGE_BYTES <= at < 40 * HUGE_BYTES
    if not there:
        with pytest.raises(RangeError, match="is not guest RAM") as refused:
            layout.segment_at(Gpa(at))
        assert refused.value.why == "the guest's RAM is 0x0-0x1000000, 0x4000000-0x5000000"
        return
    segment = layout.segment_at(Gpa(at))
    assert segment.gpa <= at < segment.gpa_range.end
    hva, found = layout.to_hva(GpaRange.of(at, 1))
    assert (found, layout.to_gpa(hva.start)) == (block, at)


def test_what_is_agreed_for_a_node_is_its_own() -> None:
    terms = Terms(node_floors=((0, 4096), (2, 8192)))
    assert [terms.floor_of(node) for node in (0, 1, 2, None)] == [4096, 0, 8192, 0]


@given(node=st.integers(0, MOST_NODES - 1), blocks=st.integers(0, 1 << 40))
def test_a_value_of_a_node_is_read_as_it_is_written(node: int, blocks: int) -> None:
    assert parse_of_node(f"{node}={blocks}", parse_broken) == (node, blocks)
    assert parse_of_node(f" {node} = {blocks * 2}M", parse_broken) == (node, blocks)


@given(node=st.integers(0, MOST_NODES - 1), size=st.integers(0, 1 << 40))
def test_a_part_of_a_node_is_all_of_it_or_a_size(node: int, size: int) -> None:
    assert parse_node_part(f" {node} ") == (node, None)
    assert parse_node_part(f"{node}={size}K") == (node, size << 10)


@pytest.mark.parametrize("text", ["", "=", "1=", "=4M", "a", "128", "-1", "1=2=3", "1 2", "1=x"])
def test_what_is_no_part_of_a_node_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_node_part(text)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=6))
def test_a_node_is_named_once(given_values: list[tuple[int, int]]) -> None:
    nodes = [node for node, _ in given_values]
    if len(set(nodes)) == len(nodes):
        refuse_twice("--floor", given_values)
        return
    with pytest.raises(UsageError, match="twice for node"):
        refuse_twice("--floor", given_values)


def test_ranges_say_what_they_are() -> None:
    assert str(GpaRange.of(0x1000, 0x2000)) == "gpa 0x1000-0x3000"
    assert str(HvaRange(Hva(0), Hva(0x10))) == "hva 0x0-0x10"
