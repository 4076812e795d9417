# SPDX-License-Identifier: GPL-2.0-or-later
"""Code to borrow is found in the bytes of what the target may execute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.target.arch.x86_64 import Gadgets, find_gadgets

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSCALL_RET = b"\x0f\x05\xc3"
RESTORE_GLIBC = b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05"  # mov $15,%rax; syscall
RESTORE_MUSL = b"\xb8\x0f\0\0\0\x0f\x05"  # mov $15,%eax; syscall
XCHG_RET, POP_RET = b"\x97\xc3", b"\x58\xc3"
ALL = (SYSCALL_RET, RESTORE_GLIBC, XCHG_RET, POP_RET)
NOP = b"\x90"


def test_each_is_found_at_its_address() -> None:
    text = NOP.join((b"", *ALL))
    assert find_gadgets([(0x1000, text)]) == Gadgets(
        syscall_return=0x1001, sigreturn=0x1005, move_result=0x100F, load_number=0x1012
    )


@pytest.mark.parametrize("restore", [RESTORE_GLIBC, RESTORE_MUSL])
def test_the_way_out_of_a_handler_is_known_of_each_libc(restore: bytes) -> None:
    assert find_gadgets([(0x4000, NOP * 3 + restore)]).sigreturn == 0x4003


def test_what_is_spread_over_several_mappings_is_found() -> None:
    texts = [(0x1000 * n, NOP * n + gadget) for n, gadget in enumerate(ALL, start=1)]
    found = find_gadgets(texts)
    assert found == Gadgets(0x1001, 0x2002, 0x3003, 0x4004)
    assert found.complete


def test_the_first_of_several_is_taken() -> None:
    text = NOP.join([*ALL, *ALL])
    assert find_gadgets([(0x1000, text), (0x9000, text)]) == find_gadgets([(0x1000, NOP.join(ALL))])


def test_one_that_is_cut_at_the_end_of_a_mapping_is_none() -> None:
    assert find_gadgets([(0x4000, SYSCALL_RET[:2]), (0x5000, SYSCALL_RET[2:])]) == Gadgets()


def test_nothing_is_read_once_all_is_found() -> None:
    def texts() -> Iterator[tuple[int, bytes]]:
        yield 0x1000, NOP.join(ALL)
        raise AssertionError("read on")

    assert find_gadgets(texts()).complete


@pytest.mark.parametrize(
    ("gadgets", "usable", "complete"),
    [
        (Gadgets(), False, False),
        (Gadgets(syscall_return=1), False, False),
        (Gadgets(sigreturn=1), False, False),
        (Gadgets(1, 1), True, False),
        (Gadgets(1, 1, move_result=1), True, False),
        (Gadgets(1, 1, load_number=1), True, False),
        (Gadgets(1, 1, 1, 1), True, True),
        (Gadgets(0, 0, 1, 1), False, False),
    ],
)
def test_two_are_needed_and_two_are_for_fds(
    gadgets: Gadgets, *, usable: bool, complete: bool
) -> None:
    assert (gadgets.usable, gadgets.complete) == (usable, complete)


@given(
    before=st.binary(max_size=64), after=st.binary(max_size=64), address=st.integers(4096, 1 << 47)
)
def test_what_is_found_is_there(before: bytes, after: bytes, address: int) -> None:
    text = before + NOP.join(ALL) + after
    found = find_gadgets([(address, text)])
    assert found.complete
    for at, patterns in (
        (found.syscall_return, (SYSCALL_RET,)),
        (found.sigreturn, (RESTORE_GLIBC, RESTORE_MUSL)),
        (found.move_result, (XCHG_RET,)),
        (found.load_number, (POP_RET,)),
    ):
        assert text[at - address :].startswith(patterns)
