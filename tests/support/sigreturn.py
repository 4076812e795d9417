# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread that follows a way back: what its returns and rt_sigreturn(2) make of a stack.

Offsets are those of struct rt_sigframe (asm/sigframe.h), struct ucontext
(asm-generic/ucontext.h) and struct sigcontext (asm/sigcontext.h) of the kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from uffdballoon.target.arch.x86_64 import CLOSE, Gadgets

GADGETS = Gadgets(
    syscall_return=0x7F0000001000,
    sigreturn=0x7F0000002000,
    move_result=0x7F0000003000,
    load_number=0x7F0000004000,
)

_UC = 8  # behind pretcode
_MCONTEXT = _UC + 40  # behind uc_flags, uc_link and uc_stack
_NAMES = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip", "eflags"),
)
OFFSETS = {name: _MCONTEXT + 8 * place for place, name in enumerate(_NAMES)}
FLAGS_OFFSET = _UC
STACK_OFFSET = _UC + 16  # uc_stack: ss_sp, ss_flags, ss_size
CS_OFFSET, SS_OFFSET = _MCONTEXT + 144, _MCONTEXT + 150
FPSTATE_OFFSET = _MCONTEXT + 184
SIGMASK_OFFSET = _MCONTEXT + 256  # behind struct sigcontext
_STACK_BYTES = 64 << 10
FRAME_BYTES = SIGMASK_OFFSET + 8 + 128  # with struct siginfo at its end


class Stack:
    """Memory around where it is first written to; ``end`` is behind all that was written."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self._start = self.end = 0

    def write(self, address: int, data: bytes) -> None:
        if not self._memory:
            self._start = address - _STACK_BYTES // 2
            self._memory = bytearray(b"\xcc") * _STACK_BYTES
        at = address - self._start
        assert 0 <= at <= _STACK_BYTES - len(data)
        self._memory[at : at + len(data)] = data
        self.end = max(self.end, address + len(data))

    def read(self, address: int, size_bytes: int) -> bytes:
        at = address - self._start
        assert 0 <= at <= _STACK_BYTES - size_bytes
        return bytes(self._memory[at : at + size_bytes])

    def u64(self, address: int) -> int:
        (value,) = struct.unpack("<Q", self.read(address, 8))
        return int(value)

    def frame(self, address: int) -> dict[str, int]:
        """Return the registers of the frame at an address."""
        words = struct.unpack(f"<{len(_NAMES)}Q", self.read(address + _MCONTEXT, 8 * len(_NAMES)))
        return dict(zip(_NAMES, words, strict=True))


@dataclass
class Thread:
    """A thread behind a ``syscall`` instruction: it goes on with a return.

    ``closed`` are the fds that it closed on its way.
    """

    stack: Stack
    registers: dict[str, int]
    closed: list[int] = field(default_factory=list)

    def follow(self, most_steps: int = 1000) -> int:
        """Run until no gadget comes next; return the address of the frame that was used last."""
        frame = 0
        self._return()
        for _ in range(most_steps):
            at = self.registers["rip"]
            if at == GADGETS.move_result:
                low = self.registers["rax"] & 0xFFFFFFFF, self.registers["rdi"] & 0xFFFFFFFF
                self.registers["rdi"], self.registers["rax"] = low
            elif at == GADGETS.load_number:
                self.registers["rax"] = self._pop()
            elif at == GADGETS.syscall_return and self.registers["rax"] == CLOSE:
                self.closed.append(self.registers["rdi"] & 0xFFFFFFFF)
            elif at == GADGETS.sigreturn:
                frame = self._sigreturn()
                continue
            else:
                return frame
            self._return()
        raise AssertionError("it never comes back")

    def _pop(self) -> int:
        value = self.stack.u64(self.registers["rsp"])
        self.registers["rsp"] += 8
        return value

    def _return(self) -> None:
        self.registers["rip"] = self._pop()

    def _sigreturn(self) -> int:
        frame = self.registers["rsp"] - 8  # arch/x86/kernel/signal_64.c: sys_rt_sigreturn()
        self.registers = self.stack.frame(frame)
        return frame
