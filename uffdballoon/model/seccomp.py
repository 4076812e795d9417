# SPDX-License-Identifier: GPL-2.0-or-later
"""What seccomp filters answer to a system call, computed from their programs.

A filter is a program of classic BPF over struct seccomp_data (linux/seccomp.h). It can see
the arguments of a call, and not all of those are known before the call is made: the number of
an fd, an address. Such a value is None here. A branch on it is followed both ways, and the
strongest of the answers counts. Programs only jump forward, so that there is always an end.
"""

from __future__ import annotations

import enum
import errno
import operator
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

AUDIT_ARCH_X86_64 = 0xC000003E  # linux/audit.h
_U32 = 0xFFFFFFFF
_MAX_ERRNO = 4095
_DATA_WORDS = 16  # struct seccomp_data: nr, arch, instruction_pointer, args[6]
_ARGUMENTS = 6
_MAX_STEPS = 200_000  # a program has 4096 instructions at most; this bounds what branches add
INSTRUCTION_BYTES = 8  # struct sock_filter, linux/filter.h

Word = int | None


class Action(enum.IntEnum):
    """The upper half of a filter's answer (linux/seccomp.h)."""

    KILL_PROCESS = 0x80000000
    KILL_THREAD = 0x00000000
    TRAP = 0x00030000
    ERRNO = 0x00050000
    USER_NOTIF = 0x7FC00000
    TRACE = 0x7FF00000
    LOG = 0x7FFC0000
    ALLOW = 0x7FFF0000


@dataclass(frozen=True, slots=True)
class Answer:
    """What the filters do with a call; ``data`` is the errno of `Action.ERRNO`."""

    action: Action
    data: int = 0

    @property
    def allows(self) -> bool:
        return self.action in (Action.ALLOW, Action.LOG)

    @property
    def errno(self) -> int:
        """The errno that the caller sees and survives; 0 for any other answer.

        Where no tracer asked for PTRACE_EVENT_SECCOMP, as we do not, a traced call fails with
        ENOSYS (kernel: __seccomp_filter).
        """
        if self.action is Action.TRACE:
            return errno.ENOSYS
        return self.data if self.action is Action.ERRNO else 0

    def __str__(self) -> str:  # noqa: PLR0911 - an action each
        match self.action:
            case Action.KILL_PROCESS | Action.KILL_THREAD:
                return "SIGSYS, which would end it"
            case Action.TRAP:
                return "SIGSYS (a trap), which may end it"
            case Action.ERRNO if self.data:
                return errno.errorcode.get(self.data, f"errno {self.data}")
            case Action.ERRNO:
                return "success, without the call being made"
            case Action.USER_NOTIF:
                return "a supervisor's decision, which is not known"
            case Action.TRACE:
                return "a tracer's decision, and it has none (ENOSYS)"
            case _:
                return "yes"


class BadProgramError(ValueError):
    """What was read is no program that seccomp takes (kernel: seccomp_check_filter)."""


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: each argument is a value, None when it is not known, or an `Fd`."""

    name: str
    number: int
    args: tuple[int | Fd | None, ...] = ()

    def words(self) -> tuple[Word, ...]:
        """Return struct seccomp_data as words, low before high."""
        padded = (*self.args, *(0,) * (_ARGUMENTS - len(self.args)))
        words: list[Word] = [self.number, AUDIT_ARCH_X86_64, None, None]
        for arg in padded:
            if arg is None:
                words += [None, None]
            elif isinstance(arg, Fd):
                words += [None, 0]
            else:
                words += [arg & _U32, arg >> 32 & _U32]
        return tuple(words)


@dataclass(frozen=True, slots=True)
class Fd:
    """An fd whose number is not known yet; that it is no large number is."""


Program = tuple[tuple[int, int, int, int], ...]


def parse_program(data: bytes) -> Program:
    """Read instructions (code, jt, jf, k) of struct sock_filter; raise BadProgramError."""
    if not data or len(data) % INSTRUCTION_BYTES:
        raise BadProgramError(f"{len(data)} bytes are no program")
    program = tuple(struct.iter_unpack("<HBBI", data))
    for code, _, _, k in program:
        is_memory = code & 7 in (_ST, _STX) or (code & 7 in (_LD, _LDX) and code & 0xE0 == _MEM)
        if is_memory and k >= _MEMORY_WORDS:
            raise BadProgramError(f"there is no memory word {k}")
    return program


def answer_of(programs: Iterable[Program], call: Call) -> Answer:
    """Return what all filters together answer; ``programs`` has the oldest first.

    The strongest action wins, and among equals that of the newest filter (kernel:
    seccomp_run_filters). Without filters everything is allowed.
    """
    words = call.words()
    strongest = Action.ALLOW + 0
    for program in reversed(list(programs)):
        value = _strongest(run(program, words))
        if _severity(value) < _severity(strongest):
            strongest = value
    return _meaning(strongest)


def run(program: Program, words: Sequence[Word]) -> set[int]:
    """Return each value that a program can end with, one where all that it looks at is known."""
    if len(words) != _DATA_WORDS:
        raise BadProgramError(f"{len(words)} words of data")
    return _Run(program, words).values()


def _severity(value: int) -> int:
    """Order answers as the kernel does: the action, as a signed number; the lower the stronger."""
    action = value & 0xFFFF0000
    return action - (1 << 32) if action >> 31 else action


def _strongest(values: set[int]) -> int:
    # An errno that is not known is the one that means most harm here: success without a call.
    return min(values, key=lambda value: (_severity(value), value & 0xFFFF))


def _meaning(value: int) -> Answer:
    try:
        action = Action(value & 0xFFFF0000)
    except ValueError:
        return Answer(Action.KILL_PROCESS)  # kernel: __seccomp_filter, default
    data = value & 0xFFFF
    return Answer(action, min(data, _MAX_ERRNO) if action is Action.ERRNO else data)


# linux/bpf_common.h: classes, sizes and modes, sources, operations
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_IMM, _ABS, _MEM, _LEN = 0x00, 0x20, 0x60, 0x80
_X = 0x08
_JA, _JEQ, _JGT, _JGE, _JSET = 0x00, 0x10, 0x20, 0x30, 0x40
_ADD, _SUB, _MUL, _DIV, _OR = 0x00, 0x10, 0x20, 0x30, 0x40
_AND, _LSH, _RSH, _NEG, _XOR = 0x50, 0x60, 0x70, 0x80, 0xA0
_TAX, _TXA = 0x00, 0x80
_RET_A = 0x10
_MEMORY_WORDS = 16

_State = tuple[int, Word, Word, tuple[Word, ...]]  # pc, A, X, M[]


class _Run:
    """All ways through one program."""

    def __init__(self, program: Program, words: Sequence[Word]) -> None:
        self._program = program
        self._words = words
        # A and X begin as zeros (kernel: bpf_convert_filter); M[] is never read before written.
        self._open: list[_State] = [(0, 0, 0, (0,) * _MEMORY_WORDS)]
        self._seen: set[_State] = set()
        self._values: set[int] = set()

    def values(self) -> set[int]:
        steps = 0
        while self._open:
            state: _State | None = self._open.pop()
            while state is not None:
                steps += 1
                if steps > _MAX_STEPS:
                    # Nobody writes such a filter; what is not known is taken for the worst.
                    return {Action.KILL_PROCESS}
                state = self._step(*state)
        return self._values

    def _step(self, pc: int, a: Word, x: Word, m: tuple[Word, ...]) -> _State | None:  # noqa: PLR0911 - a class of instructions each
        if pc >= len(self._program):
            raise BadProgramError("it runs over its end")
        code, jt, jf, k = self._program[pc]
        kind = code & 7
        if kind == _RET:
            value = a if code & 0x18 == _RET_A else k
            self._values.add(Action.KILL_PROCESS if value is None else value)
            return None
        if kind == _JMP:
            return self._jump(code, (jt, jf, k), pc, (a, x, m))
        if kind in (_LD, _LDX):
            loaded = self._load(code, k, m)
            return (pc + 1, loaded, x, m) if kind == _LD else (pc + 1, a, loaded, m)
        if kind in (_ST, _STX):
            stored = a if kind == _ST else x
            return pc + 1, a, x, (*m[:k], stored, *m[k + 1 :])
        if kind == _MISC:
            return (pc + 1, x, x, m) if code & 0xF8 == _TXA else (pc + 1, a, a, m)
        operand = x if code & _X else k
        if code & 0xF0 == _DIV and operand == 0:
            self._values.add(0)  # kernel: bpf_convert_filter ends with 0 there
            return None
        if code & 0xF0 == _DIV and operand is None:
            self._values.add(0)
        return pc + 1, _compute(code & 0xF0, a, operand), x, m

    def _load(self, code: int, k: int, m: tuple[Word, ...]) -> Word:
        match code & 0xE0:
            case mode if mode == _IMM:
                return k
            case mode if mode == _ABS:
                if k % 4 or k // 4 >= _DATA_WORDS:
                    raise BadProgramError(f"a load at {k}")
                return self._words[k // 4]
            case mode if mode == _MEM:
                return m[k]
            case mode if mode == _LEN:
                return 4 * _DATA_WORDS
        raise BadProgramError(f"a load of mode {code:#x}")

    def _jump(
        self,
        code: int,
        to: tuple[int, int, int],
        pc: int,
        state: tuple[Word, Word, tuple[Word, ...]],
    ) -> _State | None:
        jt, jf, k = to
        a, x, m = state
        if code & 0xF0 == _JA:
            return pc + 1 + k, a, x, m
        operand = x if code & _X else k
        if a is not None and operand is not None:
            taken = _compare(code & 0xF0, a, operand)
            return pc + 1 + (jt if taken else jf), a, x, m
        here: _State = (pc, a, x, m)
        if here not in self._seen:
            self._seen.add(here)
            self._open += [(pc + 1 + jt, a, x, m), (pc + 1 + jf, a, x, m)]
        return None


_COMPARISONS: dict[int, Callable[[int, int], bool]] = {
    _JEQ: operator.eq,
    _JGT: operator.gt,
    _JGE: operator.ge,
    _JSET: lambda a, b: bool(a & b),
}
_OPERATIONS: dict[int, Callable[[int, int], int]] = {
    _ADD: operator.add,
    _SUB: operator.sub,
    _MUL: operator.mul,
    _DIV: operator.floordiv,
    _OR: operator.or_,
    _AND: operator.and_,
    _XOR: operator.xor,
    # Shifts by a register take its low five bits, as x86 and the kernel's interpreter do.
    _LSH: lambda a, b: a << (b & 31),
    _RSH: lambda a, b: a >> (b & 31),
}


def _compare(operation: int, a: int, b: int) -> bool:
    compare = _COMPARISONS.get(operation)
    if compare is None:
        raise BadProgramError(f"a jump of kind {operation:#x}")
    return compare(a, b)


def _compute(operation: int, a: Word, b: Word) -> Word:
    if operation == _NEG:
        return None if a is None else -a & _U32
    compute = _OPERATIONS.get(operation)
    if compute is None:
        raise BadProgramError(f"an operation {operation:#x}")
    if operation == _AND and 0 in (a, b):
        return 0
    return None if a is None or b is None else compute(a, b) & _U32
