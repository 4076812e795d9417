# SPDX-License-Identifier: GPL-2.0-or-later
"""The way back that is laid on a stopped thread's stack, followed as the CPU and the kernel do."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptrace.binding import ptrace_registers_t

from tests.support.sigreturn import (
    CS_OFFSET,
    FLAGS_OFFSET,
    FPSTATE_OFFSET,
    FRAME_BYTES,
    GADGETS,
    OFFSETS,
    SIGMASK_OFFSET,
    SS_OFFSET,
    STACK_OFFSET,
    Stack,
    Thread,
)
from uffdballoon.target.arch import x86_64
from uffdballoon.target.arch.x86_64 import (
    ALL_SIGNALS,
    RED_ZONE_BYTES,
    USERFAULTFD,
    WayBack,
    call_registers,
    parked_registers,
)

RSP = 0x7FFE00001238
MASK = 0x8000000000014003
X87, SSE, AVX, PKRU = 1 << 0, 1 << 1, 1 << 2, 1 << 9
TILE_CFG, TILE_DATA = 1 << 17, 1 << 18
PLAIN = X87 | SSE | AVX | PKRU
LEGACY_BYTES, AVX_BYTES, TILES_BYTES = 576, 2696, 11008

_stacks = st.integers(1 << 20, (1 << 47) - 1)
_fds = st.integers(0, (1 << 31) - 1)


def interrupted(rsp: int = RSP) -> ptrace_registers_t:
    """Return a thread in user space, with another number in each register."""
    registers = ptrace_registers_t()
    for place, name in enumerate(OFFSETS):
        setattr(registers, name, 0x1111000000000000 + place)
    registers.rsp, registers.rip, registers.eflags = rsp, 0x555500001000, 0x246
    registers.cs, registers.ss = 0x33, 0x2B
    registers.orig_rax = (1 << 64) - 1
    return registers


def xstate(features: int = PLAIN, in_use: int = X87 | SSE, size_bytes: int = LEGACY_BYTES) -> bytes:
    """Return an area as PTRACE_GETREGSET has it: xfeatures at 464, what is in use at 512."""
    area = bytearray(n % 251 for n in range(size_bytes))
    struct.pack_into("<Q", area, 464, features)
    struct.pack_into("<Q", area, 512, in_use)
    return bytes(area)


def lay(
    stack: Stack,
    registers: ptrace_registers_t | None = None,
    *,
    area: bytes | None = None,
    gadgets: x86_64.Gadgets = GADGETS,
) -> WayBack:
    return WayBack(
        registers or interrupted(),
        signal_mask=MASK,
        xstate=xstate() if area is None else area,
        gadgets=gadgets,
        write=stack.write,
    )


def come_back(stack: Stack, pointer: int, *, result: int = 0) -> tuple[Thread, int]:
    """Let go a thread whose call has ended; return it and the frame that it came back by."""
    thread = Thread(stack, dict.fromkeys(OFFSETS, 0xBAD) | {"rsp": pointer, "rax": result})
    return thread, thread.follow()


def state_of(registers: ptrace_registers_t) -> dict[str, int]:
    return {name: int(getattr(registers, name)) for name in OFFSETS}


def test_the_last_frame_has_every_register_where_the_kernel_reads_it() -> None:
    stack = Stack()
    way_back = lay(stack)
    assert stack.frame(way_back.plain()) == state_of(interrupted())


def test_the_last_frame_has_segments_signal_mask_and_flags() -> None:
    stack = Stack()
    at = lay(stack).plain()
    assert stack.u64(at) == GADGETS.sigreturn, "where a return from the handler would go"
    assert struct.unpack("<H", stack.read(at + CS_OFFSET, 2)) == (0x33,)
    assert struct.unpack("<H", stack.read(at + SS_OFFSET, 2)) == (0x2B,)
    assert stack.u64(at + SIGMASK_OFFSET) == MASK
    # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS of asm/ucontext.h
    assert stack.u64(at + FLAGS_OFFSET) == 1 | 2 | 4


def test_the_alternate_signal_stack_is_too_small_to_be_taken() -> None:
    stack = Stack()
    assert stack.read(lay(stack).plain() + STACK_OFFSET, 24) == bytes(24)


def test_a_frame_is_as_long_as_the_kernels() -> None:
    stack = Stack()
    at = lay(stack).plain()
    assert stack.read(at, FRAME_BYTES)[-128:] == bytes(128), "siginfo"
    assert FRAME_BYTES == 440  # sizeof(struct rt_sigframe), arch/x86/include/asm/sigframe.h


@given(rsp=_stacks, size_bytes=st.integers(LEGACY_BYTES, 1024), fds=st.lists(_fds, max_size=4))
def test_nothing_is_written_into_the_red_zone_or_above(
    rsp: int, size_bytes: int, fds: list[int]
) -> None:
    stack = Stack()
    way_back = lay(stack, interrupted(rsp), area=xstate(size_bytes=size_bytes))
    way_back.write_closing(way_back.bottom, fds, result=True)
    assert stack.end <= rsp - RED_ZONE_BYTES


@given(rsp=_stacks, size_bytes=st.integers(LEGACY_BYTES, 1024))
def test_frames_and_xstate_are_aligned_as_the_cpu_wants_them(rsp: int, size_bytes: int) -> None:
    stack = Stack()
    way_back = lay(stack, interrupted(rsp), area=xstate(size_bytes=size_bytes))
    assert way_back.plain() % 16 == 0
    assert stack.u64(way_back.plain() + FPSTATE_OFFSET) % 64 == 0


def test_the_xstate_says_its_format_by_its_magic_words() -> None:
    stack = Stack()
    area = xstate(size_bytes=AVX_BYTES)
    at = stack.u64(lay(stack, area=area).plain() + FPSTATE_OFFSET)
    written = stack.read(at, len(area) + 4)
    # asm/sigcontext.h, struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size
    words = struct.unpack_from("<IIQI", written, 464)
    assert words == (0x46505853, len(area) + 4, PLAIN, len(area))
    assert written[464 + 20 : 512] == bytes(28)
    assert written[-4:] == struct.pack("<I", 0x46505845)
    assert (written[:464], written[512:-4]) == (area[:464], area[512:])


def _known_sizes(features: int) -> int:
    return TILES_BYTES if features & TILE_DATA else AVX_BYTES


@pytest.mark.parametrize(
    ("features", "in_use", "kept_bytes", "kept_features"),
    [
        (PLAIN | TILE_CFG | TILE_DATA, X87 | SSE, AVX_BYTES, PLAIN | TILE_CFG),
        (PLAIN | TILE_CFG | TILE_DATA, X87 | TILE_CFG, AVX_BYTES, PLAIN | TILE_CFG),
        (PLAIN | TILE_CFG | TILE_DATA, X87 | TILE_DATA, TILES_BYTES, PLAIN | TILE_CFG | TILE_DATA),
        (PLAIN, X87 | SSE, TILES_BYTES, PLAIN),
    ],
    ids=["no tiles in use", "tiles configured alone", "tiles in use", "a CPU without tiles"],
)
def test_tiles_that_a_thread_does_not_use_are_cut_off(
    features: int,
    in_use: int,
    kept_bytes: int,
    kept_features: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(x86_64, "xsave_area_bytes", _known_sizes)
    stack = Stack()
    at = lay(stack, area=xstate(features, in_use, TILES_BYTES)).plain()
    area = stack.u64(at + FPSTATE_OFFSET)
    _, extended, xfeatures, size = struct.unpack("<IIQI", stack.read(area + 464, 20))
    assert (extended, size, xfeatures) == (kept_bytes + 4, kept_bytes, kept_features)
    assert struct.unpack("<Q", stack.read(area + 512, 8)) == (in_use,)
    assert stack.read(area + size, 4) == struct.pack("<I", 0x46505845)


def test_a_plain_way_back_leads_to_where_the_thread_was() -> None:
    stack = Stack()
    way_back = lay(stack)
    thread, frame = come_back(stack, way_back.plain())
    assert (thread.registers, thread.closed) == (state_of(interrupted()), [])
    assert stack.u64(frame + SIGMASK_OFFSET) == MASK


@given(fds=st.lists(_fds, max_size=8), below=st.integers(0, 4096), rsp=_stacks)
def test_fds_are_closed_in_their_order_and_the_thread_is_where_it_was(
    fds: list[int], below: int, rsp: int
) -> None:
    stack = Stack()
    way_back = lay(stack, interrupted(rsp))
    thread, frame = come_back(stack, way_back.write_closing(way_back.bottom - below, fds))
    assert (thread.closed, thread.registers) == (fds, state_of(interrupted(rsp)))
    assert frame == way_back.plain()


@given(fds=st.lists(_fds, max_size=4), result=_fds)
def test_the_fd_that_a_call_returns_is_closed_first(fds: list[int], result: int) -> None:
    stack = Stack()
    way_back = lay(stack)
    pointer = way_back.write_closing(way_back.bottom, fds, result=True)
    thread, _ = come_back(stack, pointer, result=result)
    assert (thread.closed, thread.registers) == ([result, *fds], state_of(interrupted()))


def test_a_call_that_failed_closes_no_fd_that_there_can_be() -> None:
    stack = Stack()
    way_back = lay(stack)
    pointer = way_back.write_closing(way_back.bottom, [9], result=True)
    thread, _ = come_back(stack, pointer, result=-24 & ((1 << 64) - 1))
    assert thread.closed[1:] == [9]
    assert thread.closed[0] >> 31, "a negative number, for which close(2) says EBADF"


@pytest.mark.parametrize("lacking", ["move_result", "load_number"])
def test_without_the_code_for_it_the_result_is_left_and_all_else_closed(lacking: str) -> None:
    stack = Stack()
    way_back = lay(stack, gadgets=dataclasses.replace(GADGETS, **{lacking: 0}))
    pointer = way_back.write_closing(way_back.bottom, [5, 6], result=True)
    thread, _ = come_back(stack, pointer, result=7)
    assert (thread.closed, thread.registers) == ([5, 6], state_of(interrupted()))


@given(fds=st.lists(_fds, max_size=4), received=_fds)
def test_the_fd_that_is_written_to_a_slot_is_closed_first(fds: list[int], received: int) -> None:
    stack = Stack()
    way_back = lay(stack)
    pointer, slot = way_back.write_closing_slot(way_back.bottom, fds)
    assert stack.read(slot, 8) == b"\xff" * 8
    # A control message in front: its head may overwrite 16 bytes, and it brings a number of 4.
    stack.write(slot - 16, b"\xaa" * 16 + struct.pack("<I", received))
    thread, _ = come_back(stack, pointer)
    assert (thread.closed, thread.registers) == ([received, *fds], state_of(interrupted()))


def test_a_slot_that_nothing_was_written_to_closes_nothing() -> None:
    stack = Stack()
    way_back = lay(stack)
    thread, _ = come_back(stack, way_back.write_closing_slot(way_back.bottom, [3])[0])
    assert thread.closed == [0xFFFFFFFF, 3]


@given(fds=st.lists(_fds, min_size=1, max_size=6))
def test_frames_below_do_not_overwrite_the_last_one(fds: list[int]) -> None:
    stack = Stack()
    way_back = lay(stack)
    before = stack.read(way_back.plain(), FRAME_BYTES)
    pointer = way_back.write_closing(way_back.bottom, fds, result=True)
    assert pointer < way_back.bottom == way_back.plain()
    assert stack.read(way_back.plain(), FRAME_BYTES) == before


def test_frames_on_the_way_let_no_signal_in_and_leave_the_xstate() -> None:
    stack = Stack()
    way_back = lay(stack)
    at = way_back.write_closing(way_back.bottom, [4])
    assert stack.u64(at + SIGMASK_OFFSET) == ALL_SIGNALS
    assert stack.u64(at + FPSTATE_OFFSET) == 0
    assert stack.u64(at + FLAGS_OFFSET) == 2 | 4
    assert stack.frame(at)["eflags"] == 0x202, "interrupts on, no direction flag, no trap flag"


def test_a_call_has_its_arguments_in_the_kernels_registers() -> None:
    before = interrupted()
    registers = call_registers(before, GADGETS, 0x7000, USERFAULTFD, (1, -1, 3, 4, 5, 6))
    names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
    assert [int(getattr(registers, name)) for name in names] == [1, (1 << 64) - 1, 3, 4, 5, 6]
    assert (registers.rip, registers.rsp, registers.rax) == (GADGETS.syscall_return, 0x7000, 323)
    assert registers.orig_rax == (1 << 64) - 1, "no call that the kernel would start again"
    assert state_of(before) == state_of(interrupted()), "what is known of the thread stays"


def test_arguments_that_are_not_given_are_zero() -> None:
    registers = call_registers(interrupted(), GADGETS, 0, 3, (7,))
    names = ("rsi", "rdx", "r10", "r8", "r9")
    assert [int(getattr(registers, name)) for name in names] == [0] * 5


def test_a_parked_thread_comes_back_at_once() -> None:
    stack = Stack()
    way_back = lay(stack)
    registers = parked_registers(interrupted(), GADGETS, way_back.plain())
    assert registers.rip == GADGETS.sigreturn
    # As if it had returned to where it is: what it would return from is one word below.
    thread, _ = come_back(stack, int(registers.rsp) - 8)
    assert thread.registers == state_of(interrupted())
