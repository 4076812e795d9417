# SPDX-License-Identifier: GPL-2.0-or-later
"""A system call that the stop interrupted goes on, begins anew, or ends as after a signal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptrace.binding import ptrace_registers_t

from tests.support.sigreturn import GADGETS, Stack
from uffdballoon.errors import UnsupportedError
from uffdballoon.target.arch.x86_64 import (
    CLOCK_NANOSLEEP,
    FUTEX,
    NANOSLEEP,
    RESTART_SYSCALL,
    WayBack,
    begun_anew,
    copy_registers,
    interrupted_call,
    is_64bit,
    resumable,
)
from uffdballoon.target.injector import RemoteThread, _refuse_shadow_stack

_ALL = (1 << 64) - 1
_RIP = 0x555500001002
_EINTR = 4
# linux/errno.h: ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
_FROM_THE_BEGINNING = (512, 513, 514)
_BY_RESTART_BLOCK = 516  # ERESTART_RESTARTBLOCK


def stopped(result: int, number: int = FUTEX) -> ptrace_registers_t:
    """Return a thread that was stopped behind a ``syscall`` that has ``result`` so far."""
    registers = ptrace_registers_t()
    registers.rax, registers.orig_rax, registers.rip = result & _ALL, number & _ALL, _RIP
    registers.rdi, registers.rsp, registers.cs = 0x1234, 0x7FFE00001000, 0x33
    return registers


def calls(registers: ptrace_registers_t) -> tuple[int, int, int]:
    return int(registers.rax), int(registers.rip), int(registers.orig_rax)


@pytest.mark.parametrize("code", _FROM_THE_BEGINNING)
def test_a_call_that_may_be_restarted_is_made_again(code: int) -> None:
    assert calls(resumable(stopped(-code))) == (FUTEX, _RIP - 2, _ALL)


def test_a_sleep_goes_on_for_the_rest_of_its_time() -> None:
    registers = resumable(stopped(-_BY_RESTART_BLOCK, NANOSLEEP))
    assert calls(registers) == (RESTART_SYSCALL, _RIP - 2, _ALL)


@pytest.mark.parametrize("result", [0, 7, -_EINTR, -11, -511, -515, -517])
def test_a_call_that_has_ended_is_not_made_again(result: int) -> None:
    registers = stopped(result)
    assert calls(resumable(registers)) == (result & _ALL, _RIP, _ALL)
    assert interrupted_call(registers) == -1


@pytest.mark.parametrize("code", [*_FROM_THE_BEGINNING, _BY_RESTART_BLOCK])
def test_outside_of_a_call_a_number_in_rax_means_nothing(code: int) -> None:
    registers = stopped(-code, number=-1)
    assert calls(resumable(registers)) == (-code & _ALL, _RIP, _ALL)
    assert interrupted_call(registers) == -1
    assert begun_anew(registers) is None


@pytest.mark.parametrize("code", [*_FROM_THE_BEGINNING, _BY_RESTART_BLOCK])
@pytest.mark.parametrize("number", [FUTEX, NANOSLEEP, CLOCK_NANOSLEEP])
def test_the_call_that_was_slept_in_is_told_by_its_number(code: int, number: int) -> None:
    assert interrupted_call(stopped(-code, number)) == number


def test_what_would_go_on_by_restart_syscall_can_begin_anew() -> None:
    registers = begun_anew(stopped(-_BY_RESTART_BLOCK, CLOCK_NANOSLEEP))
    assert registers is not None
    assert calls(registers) == (CLOCK_NANOSLEEP, _RIP - 2, _ALL)


@pytest.mark.parametrize("result", [*(-code for code in _FROM_THE_BEGINNING), 0, -_EINTR])
def test_what_begins_anew_anyway_needs_no_help(result: int) -> None:
    assert begun_anew(stopped(result)) is None


@given(
    result=st.sampled_from([*_FROM_THE_BEGINNING, _BY_RESTART_BLOCK, 0, 4]),
    rdi=st.integers(0, _ALL),
    rbx=st.integers(0, _ALL),
)
def test_all_but_the_call_is_left_as_it_was(result: int, rdi: int, rbx: int) -> None:
    registers = stopped(-result)
    registers.rdi, registers.rbx = rdi, rbx
    before = bytes(copy_registers(registers))
    resumed = resumable(registers)
    assert bytes(registers) == before, "what is known of the thread stays"
    resumed.rax, resumed.rip, resumed.orig_rax = calls(registers)
    assert bytes(resumed) == before


@pytest.mark.parametrize(
    ("result", "rax", "rip"),
    [
        *((-code, FUTEX, _RIP - 2) for code in _FROM_THE_BEGINNING),
        # rt_sigreturn(2) cancels restart blocks: such a call ends as after a signal.
        (-_BY_RESTART_BLOCK, -_EINTR & _ALL, _RIP),
        (5, 5, _RIP),
    ],
)
def test_a_thread_that_is_let_go_makes_its_call_again_or_ends_it(
    result: int, rax: int, rip: int
) -> None:
    stack = Stack()
    area = bytes(576)
    way_back = WayBack(
        stopped(result), signal_mask=0, xstate=area, gadgets=GADGETS, write=stack.write
    )
    frame = stack.frame(way_back.plain())
    assert (frame["rax"], frame["rip"], frame["rdi"]) == (rax, rip, 0x1234)


@pytest.mark.parametrize(("cs", "is_it"), [(0x33, True), (0x23, False), (0x10, False), (0, False)])
def test_64_bit_code_is_told_by_its_segment(cs: int, *, is_it: bool) -> None:
    registers = stopped(0)
    registers.cs = cs
    assert is_64bit(registers) is is_it


def test_a_thread_in_32_bit_code_is_refused_before_anything_is_written() -> None:
    registers = stopped(0)
    registers.cs = 0x23
    remote: Any = SimpleNamespace(pid=7, _interrupted=registers)
    with pytest.raises(UnsupportedError, match="process 7 runs 32-bit code"):
        RemoteThread.prepare(cast("RemoteThread", remote))


def test_a_shadow_stack_is_refused_with_what_turns_it_off() -> None:
    with pytest.raises(UnsupportedError, match="shadow stack") as refused:
        _refuse_shadow_stack(7, has_one=True)
    assert "GLIBC_TUNABLES" in refused.value.hint
    assert refused.value.pid == 7
    _refuse_shadow_stack(7, has_one=False)
