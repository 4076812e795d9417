# SPDX-License-Identifier: GPL-2.0-or-later
"""What injection needs to know of x86-64: registers, code to borrow, signal frames.

Nothing is written to the target's code. System calls run from a ``syscall;
ret`` that its libc has anyway, and the stack pointer of the stopped thread is
put on a *way back* that we wrote below its red zone: a chain of return
addresses and rt_sigreturn frames which ends in the state that the thread was
interrupted in. A thread that is let go at any instant, by a tracer that dies,
finishes its call, follows the way back and never knows.

Another architecture is another file with the names of this one.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.host.cpu import xsave_area_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ptrace.binding import ptrace_registers_t

MACHINE = "x86_64"

# arch/x86/entry/syscalls/syscall_64.tbl
CLOSE = 3
IOCTL = 16
MADVISE = 28
SOCKET = 41
RECVMSG = 47
BIND = 49
NANOSLEEP = 35
FUTEX = 202
CLOCK_NANOSLEEP = 230
USERFAULTFD = 323
OPENAT = 257
DUP3 = 292
PIDFD_OPEN = 434
PROCESS_MADVISE = 440
RT_SIGRETURN = 15
RESTART_SYSCALL = 219

ALL_SIGNALS = (1 << 64) - 1
RED_ZONE_BYTES = 128
_USER_64BIT_CS = 0x33

# linux/errno.h, kernel-internal: what an interrupted call's rax holds at the stop.
_EINTR = 4
_ERESTARTSYS = 512
_ERESTARTNOINTR = 513
_ERESTARTNOHAND = 514
_ERESTART_RESTARTBLOCK = 516
_RESTARTABLE = (_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND)

# asm/ucontext.h, asm/sigcontext.h
_UC_FP_XSTATE = 1
_UC_SIGCONTEXT_SS = 2
_UC_STRICT_RESTORE_SS = 4
_FP_XSTATE_MAGIC1 = 0x46505853
_FP_XSTATE_MAGIC2 = 0x46505845
_SW_RESERVED_OFFSET = 464
_XSTATE_BV_OFFSET = 512
_TILE_DATA = 1 << 18
_FRAME_REGISTERS = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip", "eflags"),
)
_UCONTEXT_HEAD_BYTES = 40  # uc_flags, uc_link, uc_stack
_FRAME_RDI_OFFSET = 8 + _UCONTEXT_HEAD_BYTES + 8 * _FRAME_REGISTERS.index("rdi")
_FRAME_BYTES = 8 + 304 + 128  # return address, struct ucontext, siginfo

_U64 = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True, slots=True)
class Gadgets:
    """Addresses of code in the target that the way back is made of.

    ``move_result`` (``xchg edi, eax; ret``) and ``load_number`` (``pop rax;
    ret``) let the way back close an fd whose number only the kernel knows yet;
    0 where the target has none.
    """

    syscall_return: int = 0
    sigreturn: int = 0
    move_result: int = 0
    load_number: int = 0

    @property
    def usable(self) -> bool:
        return bool(self.syscall_return and self.sigreturn)

    @property
    def complete(self) -> bool:
        return self.usable and bool(self.move_result and self.load_number)


_PATTERNS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("syscall_return", (b"\x0f\x05\xc3",)),
    # glibc's __restore_rt, and musl's
    ("sigreturn", (b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05", b"\xb8\x0f\0\0\0\x0f\x05")),
    ("move_result", (b"\x97\xc3",)),
    ("load_number", (b"\x58\xc3",)),
)


def find_gadgets(texts: Iterable[tuple[int, bytes]]) -> Gadgets:
    """Search executable memory, given as (address, bytes), until all is found."""
    found = Gadgets()
    for address, text in texts:
        for name, patterns in _PATTERNS:
            if getattr(found, name):
                continue
            offsets = [o for o in (text.find(p) for p in patterns) if o >= 0]
            if offsets:
                found = dataclasses.replace(found, **{name: address + offsets[0]})
        if found.complete:
            break
    return found


def is_64bit(registers: ptrace_registers_t) -> bool:
    return int(registers.cs) == _USER_64BIT_CS


def _interrupted_call(registers: ptrace_registers_t) -> int | None:
    """Return the restart code of the call that the stop interrupted, if any."""
    if _signed(registers.orig_rax) < 0:
        return None
    code = -_signed(registers.rax)
    return code if code in (*_RESTARTABLE, _ERESTART_RESTARTBLOCK) else None


def interrupted_call(registers: ptrace_registers_t) -> int:
    """Return the number of the system call that the stop interrupted in its sleep; -1: none."""
    return -1 if _interrupted_call(registers) is None else int(registers.orig_rax)


def copy_registers(registers: ptrace_registers_t) -> ptrace_registers_t:
    return type(registers).from_buffer_copy(registers)


def resumable(registers: ptrace_registers_t) -> ptrace_registers_t:
    """Return the registers to leave a thread with so that it goes on as before.

    Having run other calls in between, the kernel does not restart the
    interrupted one: we do, by stepping back over its ``syscall`` instruction.
    """
    result = copy_registers(registers)
    code = _interrupted_call(registers)
    if code in _RESTARTABLE:
        result.rax = registers.orig_rax
        result.rip = registers.rip - 2
    elif code == _ERESTART_RESTARTBLOCK:
        result.rax = RESTART_SYSCALL
        result.rip = registers.rip - 2
    result.orig_rax = _U64
    return result


def begun_anew(registers: ptrace_registers_t) -> ptrace_registers_t | None:
    """Return registers that make the interrupted call from its beginning.

    None where the kernel goes on with it without restart_syscall(2).
    """
    if -_signed(registers.rax) != _ERESTART_RESTARTBLOCK or _interrupted_call(registers) is None:
        return None
    result = copy_registers(registers)
    result.rax = registers.orig_rax
    result.rip = registers.rip - 2
    result.orig_rax = _U64
    return result


def call_registers(
    registers: ptrace_registers_t, gadgets: Gadgets, stack: int, number: int, args: Sequence[int]
) -> ptrace_registers_t:
    """Return registers that run a system call and then follow the way back at ``stack``."""
    result = copy_registers(registers)
    result.rip = gadgets.syscall_return
    result.rsp = stack
    result.rax = number
    result.orig_rax = _U64  # this is no call to restart
    padded = (*args, *(0,) * (6 - len(args)))
    names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
    for name, value in zip(names, padded, strict=True):
        setattr(result, name, value & _U64)
    return result


def parked_registers(
    registers: ptrace_registers_t, gadgets: Gadgets, stack: int
) -> ptrace_registers_t:
    """Return registers that do nothing but follow the way back at ``stack``."""
    result = copy_registers(registers)
    result.rip = gadgets.sigreturn
    result.rsp = stack + 8  # as if the ret that leads there had popped its address
    result.orig_rax = _U64
    return result


class WayBack:
    """Lays out the way back in one stretch of the stopped thread's stack.

    From the top down: the XSAVE area, the last frame (the interrupted state),
    and below it whatever the next call wants closed.
    """

    def __init__(
        self,
        registers: ptrace_registers_t,
        *,
        signal_mask: int,
        xstate: bytes,
        gadgets: Gadgets,
        write: Callable[[int, bytes], None],
    ) -> None:
        self._gadgets = gadgets
        self._write = write
        self._segments = registers
        xstate = _trimmed(xstate)
        top = int(registers.rsp) - RED_ZONE_BYTES
        xstate_address = (top - len(xstate) - 8) & ~63
        self._last = (xstate_address - _FRAME_BYTES) & ~15
        frame = self._frame(_frame_state(registers), signal_mask, xstate_address)
        write(self._last, frame)
        write(xstate_address, _signal_xstate(xstate))

    @property
    def bottom(self) -> int:
        """The lowest address in use; all below it is free for arguments."""
        return self._last

    def plain(self) -> int:
        """Return the stack pointer of a way back that closes nothing."""
        return self._last

    def write_closing(self, below: int, fds: Sequence[int], *, result: bool = False) -> int:
        """Write a way back below ``below`` that closes ``fds`` first.

        With ``result``, it also closes the fd that the call returns. Returns
        its stack pointer.
        """
        next_stack = self._last
        for fd in reversed(fds):
            below = (below - _FRAME_BYTES) & ~15
            self._write(below, self._close_frame(fd, next_stack))
            next_stack = below
        if result and self._gadgets.complete:
            # The chain must run on into the next frame, so it ends where that one starts.
            words = (
                self._gadgets.move_result,
                self._gadgets.load_number,
                CLOSE,
                self._gadgets.syscall_return,
            )
            frame = self._goto_frame(next_stack)
            below = (below - 8 * len(words) - len(frame)) & ~15
            self._write(below, struct.pack(f"<{len(words)}Q", *words) + frame)
            next_stack = below
        return next_stack

    def write_closing_slot(self, below: int, fds: Sequence[int]) -> tuple[int, int]:
        """Write a way back that first closes the fd whose number will be at an address.

        Returns the stack pointer and that address: 8 bytes that hold -1, with
        16 bytes before them that may be overwritten (so that recvmsg can put a
        control message there whose first fd lands in the slot).
        """
        after = self.write_closing(below, fds)
        stack = (min(after, below) - _FRAME_BYTES) & ~15
        self._write(stack, self._close_frame(_U64, after))
        return stack, stack + _FRAME_RDI_OFFSET

    def _close_frame(self, fd: int, next_stack: int) -> bytes:
        return self._step_frame(
            rip=self._gadgets.syscall_return, rsp=next_stack, rax=CLOSE, rdi=fd & _U64
        )

    def _goto_frame(self, next_stack: int) -> bytes:
        """Return a frame that only moves the stack pointer on."""
        return self._step_frame(
            rip=self._gadgets.sigreturn, rsp=next_stack + 8, rax=RT_SIGRETURN, rdi=0
        )

    def _step_frame(self, **registers: int) -> bytes:
        state = dict.fromkeys(_FRAME_REGISTERS, 0) | registers
        state["eflags"] = 0x202
        return self._frame(state, ALL_SIGNALS, xstate_address=0)

    def _frame(self, state: dict[str, int], signal_mask: int, xstate_address: int) -> bytes:
        """Return an rt_sigreturn frame (struct rt_sigframe, asm/sigframe.h).

        The alternate signal stack is given as zeros, which the kernel finds
        too small and leaves alone (restore_altstack squashes the error).
        """
        flags = _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS
        if xstate_address:
            flags |= _UC_FP_XSTATE
        cs, ss = self._segments.cs, self._segments.ss
        frame = struct.pack(
            "<Q QQQQQ 18Q HHHH QQQQ Q 64x Q",
            self._gadgets.sigreturn,
            *(flags, 0, 0, 0, 0),
            *(state[name] & _U64 for name in _FRAME_REGISTERS),
            *(cs, 0, 0, ss),
            *(0, 0, 0, 0),
            xstate_address,
            signal_mask,
        )
        return frame.ljust(_FRAME_BYTES, b"\0")


def _frame_state(registers: ptrace_registers_t) -> dict[str, int]:
    """Return the interrupted state as rt_sigreturn shall restore it.

    rt_sigreturn cancels restart blocks (restore_sigcontext sets
    do_no_restart_syscall), so such a call ends with EINTR, as after a signal.
    """
    resumed = resumable(registers)
    state = {name: int(getattr(resumed, name)) for name in _FRAME_REGISTERS}
    if _interrupted_call(registers) == _ERESTART_RESTARTBLOCK:
        state["rip"] = registers.rip
        state["rax"] = -_EINTR & _U64
    return state


def _trimmed(xstate: bytes) -> bytes:
    """Cut off the AMX tiles where the thread has none in use.

    ptrace always gives room for every component that the machine has, and
    sigreturn takes no more than the thread may use: from a larger area it
    restores the legacy part alone, and the upper halves of the vector registers
    are lost (kernel: check_xstate_in_sigframe, "setfx"). Tiles are the one
    component that a thread has to ask for.
    """
    (features,) = struct.unpack_from("<Q", xstate, _SW_RESERVED_OFFSET)
    (in_use,) = struct.unpack_from("<Q", xstate, _XSTATE_BV_OFFSET)
    if in_use & _TILE_DATA or not features & _TILE_DATA:
        return xstate
    features &= ~_TILE_DATA
    trimmed = bytearray(xstate[: xsave_area_bytes(features)])
    struct.pack_into("<Q", trimmed, _SW_RESERVED_OFFSET, features)
    return bytes(trimmed)


def _signal_xstate(xstate: bytes) -> bytes:
    """Return the XSAVE area with the words by which sigreturn knows its format.

    asm/sigcontext.h, struct _fpx_sw_bytes: magic1, extended_size, xfeatures,
    xstate_size; magic2 follows the area.
    """
    (features,) = struct.unpack_from("<Q", xstate, _SW_RESERVED_OFFSET)
    area = bytearray(xstate)
    struct.pack_into(
        "<IIQI 28x",
        area,
        _SW_RESERVED_OFFSET,
        _FP_XSTATE_MAGIC1,
        len(xstate) + 4,
        features,
        len(xstate),
    )
    return bytes(area) + struct.pack("<I", _FP_XSTATE_MAGIC2)
