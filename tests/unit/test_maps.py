# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mappings are the guest's RAM, by their size alone."""

from __future__ import annotations

import pytest

from uffdballoon.host.procfs import parse_maps, stretches_of_size

SIZE = 0x400000
STACK = "7f0000000000-7f0000010000 rw-p 00000000 00:00 0\n"
WHOLE = "7f0000010000-7f0000410000 rw-p 00000000 00:00 0\n"
PIECES = (
    "7f0000010000-7f0000200000 rw-p 00000000 00:00 0\n"
    "7f0000200000-7f0000410000 rw-p 00000000 00:00 0\n"
)
ARENA = "7f0000410000-7f0000420000 rw-p 00000000 00:00 0\n"
GUARD = "7f0000410000-7f0000411000 ---p 00000000 00:00 0\n"
FILE = "7f0000410000-7f0000420000 rw-p 00000000 00:01 77 /memfd:other (deleted)\n"


@pytest.mark.parametrize("ram", [WHOLE, PIECES], ids=["whole", "split"])
@pytest.mark.parametrize("before", ["", STACK], ids=["alone", "below"])
@pytest.mark.parametrize("after", ["", ARENA, GUARD, FILE], ids=["end", "above", "guard", "file"])
def test_ram_is_found_with_whatever_lies_beside_it(before: str, ram: str, after: str) -> None:
    ((span, _),) = stretches_of_size(parse_maps(before + ram + after), SIZE)
    assert (span.start, span.size_bytes) == (0x7F0000010000, SIZE)


def test_two_that_are_as_large_are_both_told() -> None:
    other = "7f0000420000-7f0000820000 rw-p 00000000 00:00 0\n"
    assert len(stretches_of_size(parse_maps(WHOLE + other), SIZE)) == 2


def test_nothing_is_joined_over_a_gap_or_to_memory_of_another_kind() -> None:
    read_only = "7f0000000000-7f0000200000 r--p 00000000 00:00 0\n"
    rest = "7f0000200000-7f0000400000 rw-p 00000000 00:00 0\n"
    far = "7f0000500000-7f0000700000 rw-p 00000000 00:00 0\n"
    assert stretches_of_size(parse_maps(read_only + rest + far), SIZE) == []
