# SPDX-License-Identifier: GPL-2.0-or-later
"""Parsers against what QEMU 7.2 printed: two NUMA nodes, 5 GiB, and a DIMM plugged in."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.vmm.qemu.answers import parse_gpa2hva, parse_mtree, parse_ramblock
from uffdballoon.vmm.qemu.facts import RamBlockFact, RamSection

_DATA = Path(__file__).parent / "data"


def test_the_memory_tree_gives_each_stretch_of_ram_once() -> None:
    sections = parse_mtree((_DATA / "qemu-7.2-mtree.txt").read_text())
    assert sections == (
        RamSection(0, 0xA0000, "r0", 0),
        RamSection(0x100000, 0x7FF00000, "r0", 0x100000),
        RamSection(0x80000000, 0x40000000, "r1", 0),
        RamSection(0x100000000, 0x80000000, "r1", 0x40000000),
        RamSection(0x180000000, 0x10000000, "d0", 0),
    )


def test_kvm_in_a_section_is_not_part_of_its_name() -> None:
    text = (
        "FlatView #0\n"
        ' AS "memory", root: system\n'
        "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\n"
        "  0000000000100000-00000000001fffff (prio 0, ram): pc.ram @0000000000100000 KVM\n"
    )
    assert [s.idstr for s in parse_mtree(text)] == ["pc.ram", "pc.ram"]


def test_ram_blocks_have_names_page_sizes_and_sizes() -> None:
    blocks = parse_ramblock((_DATA / "qemu-7.2-ramblock.txt").read_text())
    assert RamBlockFact("r1", 4096, 3 << 30) in blocks
    assert RamBlockFact("d0", 4096, 256 << 20) in blocks
    assert RamBlockFact("/rom@etc/acpi/tables", 4096, 0x200000) in blocks


def test_newer_columns_of_ramblock_are_passed_over() -> None:
    line = (
        "   pc.ram    2 MiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 "
        "0x00007f0000000000  rw\n"
    )
    assert parse_ramblock(line) == (RamBlockFact("pc.ram", 2 << 20, 128 << 20),)


def test_an_hva_is_read_and_a_refusal_is_none() -> None:
    assert parse_gpa2hva("Host virtual address for 0x0 (r0) is 0x7f5c0be00000\n") == 0x7F5C0BE00000
    assert parse_gpa2hva("No memory is mapped at address 0x90000000\n") is None


@given(st.text(max_size=300))
def test_garbage_is_passed_over(text: str) -> None:
    parse_mtree(text)
    parse_ramblock(text)
    parse_gpa2hva(text)
