# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of the human monitor with something amiss: what is whole is read, the rest is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdballoon.vmm.qemu.answers import parse_gpa2hva, parse_mtree, parse_ramblock
from uffdballoon.vmm.qemu.facts import RamBlockFact, RamSection

_DATA = Path(__file__).parent / "data"
_TREE = (_DATA / "qemu-7.2-mtree.txt").read_text()
_BLOCKS = (_DATA / "qemu-7.2-ramblock.txt").read_text()
_names = st.sampled_from(["pc.ram", "ram node 0", "/objects/mem0", "a @b", "x (prio 0, ram): y"])


@settings(max_examples=50)
@given(st.lists(st.tuples(_names, st.integers(0, 1 << 30), st.integers(1, 1 << 20)), max_size=5))
def test_a_tree_is_read_as_it_is_written(rows: list[tuple[str, int, int]]) -> None:
    expected = [
        RamSection(first << 12, pages << 12, name, offset)
        for offset, (name, first, pages) in enumerate(rows)
    ]
    lines = ["FlatView #0", ' AS "memory", root: system', " Root memory region: system"]
    for section in expected:
        last = section.gpa + section.size_bytes - 1
        offset = f" @{section.offset_bytes:016x}" if section.offset_bytes else ""
        lines.append(f"  {section.gpa:016x}-{last:016x} (prio 0, ram): {section.idstr}{offset}")
    assert list(parse_mtree("\n".join(lines))) == expected


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(_names, st.sampled_from(["4 KiB", "2 MiB", "1 GiB"]), st.integers(0, 1 << 40))
    )
)
def test_blocks_are_read_as_they_are_written(rows: list[tuple[str, str, int]]) -> None:
    text = "".join(
        f"{name:>24s} {page:>8s}  {0:#018x} {size:#018x} {size:#018x}\n"
        for name, page, size in rows
    )
    page_bytes = {"4 KiB": 4 << 10, "2 MiB": 2 << 20, "1 GiB": 1 << 30}
    assert parse_ramblock(text) == tuple(
        RamBlockFact(name, page_bytes[page], size) for name, page, size in rows
    )


@settings(max_examples=50)
@given(st.integers(0, len(_TREE)), st.integers(0, len(_BLOCKS)))
def test_of_an_answer_that_is_cut_off_whole_lines_are_read(tree: int, blocks: int) -> None:
    sections, facts = parse_mtree(_TREE), parse_ramblock(_BLOCKS)
    whole_lines = _TREE[:tree].rpartition("\n")[0]
    assert parse_mtree(whole_lines) == sections[: len(parse_mtree(whole_lines))]
    whole_lines = _BLOCKS[:blocks].rpartition("\n")[0]
    assert parse_ramblock(whole_lines) == facts[: len(parse_ramblock(whole_lines))]


@pytest.mark.parametrize(
    "row",
    [
        "0000000000000000-00000000000fffff (prio 0, rom): pc.ram",
        "0000000000000000-00000000000fffff (prio 0, ramd): pc.ram",
        "0000000000000000-00000000000fffff (prio 0, ram):pc.ram",
        "0-fffff (prio 0, ram): pc.ram",
        "000000000000000g-00000000000fffff (prio 0, ram): pc.ram",
        "  0000000000000000-00000000000fffff (prio 0, ram): pc.ram",
    ],
)
def test_a_row_of_another_shape_is_no_ram(row: str) -> None:
    assert parse_mtree(f'FlatView #0\n AS "memory", root: system\n  {row}\n') == ()


@pytest.mark.parametrize(
    ("text", "hva"),
    [
        ("Host virtual address for 0x0 (pc.ram) is 0x7f0000000000\r\n", 0x7F0000000000),
        ("Host virtual address for 0x1000 (a (b) is 0x1) is 0x2\n", 2),
        ("Memory at address 0x0 is not RAM\n", None),
        ("No memory is mapped at address 0xf0000000\n", None),
        ("Host virtual address for 0x0 (pc.ram) is (nil)\n", None),
        ("Host virtual address for 0x0 (pc.ram) is 0x7f0000000000 or so", None),
        ("", None),
    ],
)
def test_the_hva_of_a_gpa_is_read_or_is_none(text: str, hva: int | None) -> None:
    assert parse_gpa2hva(text) == hva
