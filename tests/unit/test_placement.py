# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM of any size lies where its machine type puts it, each byte at most once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.guest_ram import ram_block
from uffdballoon.model.ram import Layout, RamBlock
from uffdballoon.vmm.qemu.cmdline import parse_cmdline
from uffdballoon.vmm.qemu.placement import Split, place, split_of, why_unclear

_G = 1 << 30
_M = 1 << 20
_ROMS_BYTES = 0x100000 - 0xA0000
_MACHINES = ("pc", "q35", "pc-i440fx-1.7", "pc-i440fx-7.2", "pc-q35-9.2", "pc-q35-noble")
_sizes = st.integers(1, 16 << 10)  # of RAM, in MiB


def laid_out(machine: str, *mebibytes: int) -> Layout:
    options = parse_cmdline(["q", "-machine", machine, "-m", f"{sum(mebibytes)}M"])
    assert not why_unclear(options)
    blocks = []
    for number, size in enumerate(mebibytes):
        block = ram_block(number * 8)  # apart
        blocks.append(RamBlock("r", block.hva, size * _M, 4096, block.backing, shared=False))
    return Layout(tuple(place(options, blocks)), source="made up")


@given(machine=st.sampled_from(_MACHINES), mib=_sizes)
def test_all_of_it_is_there_but_what_roms_lie_over(machine: str, mib: int) -> None:
    layout = laid_out(machine, mib)
    assert layout.ram_bytes == mib * _M - _ROMS_BYTES
    assert layout.allocated_bytes == mib * _M


@given(machine=st.sampled_from(_MACHINES), mib=_sizes)
def test_no_two_stretches_overlap_and_none_is_in_a_hole(machine: str, mib: int) -> None:
    segments = laid_out(machine, mib).segments
    for before, after in itertools.pairwise(segments):
        assert before.gpa_range.end <= after.gpa
    for segment in segments:
        span = segment.gpa_range
        assert span.end <= 0xA0000 or span.start >= 0x100000
        assert span.end <= 0xE0000000 or span.start >= 4 * _G


@given(machine=st.sampled_from(_MACHINES), mib=_sizes, page=st.integers(0, 1 << 22))
def test_gpa_and_hva_are_each_others_inverse(machine: str, mib: int, page: int) -> None:
    layout = laid_out(machine, mib)
    hva = layout.blocks[0].hva + page * 4096 % (mib * _M)
    gpa = layout.to_gpa(hva)  # type: ignore[arg-type]
    if gpa is None:
        assert 0xA0000 <= hva - layout.blocks[0].hva < 0x100000
    else:
        segment = layout.segment_at(gpa)
        assert segment.hva + gpa - segment.gpa == hva


@given(
    machine=st.sampled_from(_MACHINES), sizes=st.lists(st.integers(1, 4096), min_size=1, max_size=4)
)
def test_blocks_of_nodes_lie_as_one_block_would(machine: str, sizes: list[int]) -> None:
    def stretches(layout: Layout) -> list[int]:
        joined: list[int] = []
        for segment in layout.segments:
            if joined and joined[-1] == segment.gpa:
                joined.pop()
            else:
                joined.append(segment.gpa)
            joined.append(segment.gpa_range.end)
        return joined

    assert stretches(laid_out(machine, *sizes)) == stretches(laid_out(machine, sum(sizes)))


@pytest.mark.parametrize(
    ("machine", "split"),
    [
        ("pc", Split(0xE0000000, 0xC0000000)),
        ("pc-i440fx-1.0", Split(0xE0000000, 0xE0000000)),
        ("pc-i440fx-2.12", Split(0xE0000000, 0xC0000000)),
        ("pc-1.0", Split(0xE0000000, None)),
        ("q35", Split(0xB0000000, 0x80000000)),
        ("pc-q35-1.6", Split(0xB0000000, None)),
        ("pc-q35-10.0.1", Split(0xB0000000, 0x80000000)),
        ("rhel6.6.0", Split(0xE0000000, None)),
        ("ubuntu", Split(0xE0000000, 0xC0000000)),
        ("isapc", Split(0xE0000000, None)),
        ("microvm", Split(0xB0000000, None)),
        ("virt", None),
        ("pc-q35", None),
        ("none", None),
    ],
)
def test_where_a_machine_type_splits_its_ram(machine: str, split: Split | None) -> None:
    assert split_of(parse_cmdline(["q", "-machine", machine])) == split
