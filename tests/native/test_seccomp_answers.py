# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel and `model/seccomp.py` give the same answers to the same calls."""

from __future__ import annotations

import errno
import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.filters import ALLOW, LOAD_NUMBER, Kernel, build_filtered
from uffdballoon.model.seccomp import Action, Answer, Call, Program, Word, answer_of, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GETPID = 39
CASES = 1500
CALLS = 6
_U32, _U64 = 0xFFFFFFFF, (1 << 64) - 1
_ALU = (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0)
_JUMPS = (0x10, 0x20, 0x30, 0x40)
_RETURNS = (
    *(int(action) for action in Action),
    *(Action.ERRNO | number for number in (0, 1, 13, 38, 4095, 4096, 0xFFFF)),
    *(Action.TRACE | 5, Action.TRAP | 5, 0x00060000, 0x7FFE0000, 0xFFFF0000, 1),
)
_INTERESTING = (0, 1, 2, 31, 32, 0xFFF, 0x7FFFFFFF, 0x80000000, _U32, 1 << 32, _U64, 0xAA00)
# What tells 32 bits of A by an errno: A ^ A >> 12 ^ A >> 24, its low 12 bits.
_TELL_A = (
    *((0x02, 0, 0, 0), (0x07, 0, 0, 0), (0x74, 0, 0, 12), (0xAC, 0, 0, 0), (0x02, 0, 0, 1)),
    *((0x60, 0, 0, 0), (0x74, 0, 0, 24), (0x07, 0, 0, 0), (0x60, 0, 0, 1), (0xAC, 0, 0, 0)),
    *((0x54, 0, 0, 0xFFF), (0x44, 0, 0, int(Action.ERRNO)), (0x16, 0, 0, 0)),
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    kernel = Kernel(build_filtered(tmp_path_factory.mktemp("filtered")))
    yield kernel
    kernel.close()


def value_of(chance: random.Random) -> int:
    return chance.choice((chance.choice(_INTERESTING) & _U32, chance.getrandbits(32)))


def instruction(chance: random.Random, left: int) -> tuple[int, int, int, int]:  # noqa: PLR0911 - a kind each
    """Return any instruction that seccomp allows; ``left`` follow it."""
    kind = chance.randrange(9)
    k = value_of(chance)
    if kind == 0:  # the instruction pointer, at 8 and 12, nobody knows beforehand
        return 0x20, 0, 0, chance.choice((0, 4, *range(16, 64, 4)))
    if kind == 1:
        return chance.choice(((0x00, 0, 0, k), (0x01, 0, 0, k), (0x80, 0, 0, 0), (0x81, 0, 0, 0)))
    if kind == 2:
        return chance.choice((0x60, 0x61, 0x02, 0x03)), 0, 0, chance.randrange(16)
    if kind == 3:
        return chance.choice((0x07, 0x87, 0x84)), 0, 0, 0
    if kind in (4, 5):
        operation = chance.choice(_ALU)
        if chance.random() < 0.5:
            return 0x0C | operation, 0, 0, 0
        k = k % 32 if operation in (0x60, 0x70) else k or 1
        return 0x04 | operation, 0, 0, k
    if kind == 6 and chance.random() < 0.2:
        return 0x06, 0, 0, chance.choice(_RETURNS)
    far = min(left, 12)
    if kind == 7 and chance.random() < 0.3:
        return 0x05, 0, 0, chance.randrange(far)
    source = chance.choice((0x00, 0x08))
    jumps = chance.randrange(far), chance.randrange(far)
    return 0x05 | chance.choice(_JUMPS) | source, *jumps, 0 if source else k


def any_program(chance: random.Random) -> Program:
    """Return a filter for getpid(2) that allows every other call."""
    length = chance.randrange(1, 50)
    body = [
        (0x20, 0, 0, chance.choice(range(16, 64, 4))),
        (0x01, 0, 0, value_of(chance)),
        *((0x02, 0, 0, cell) for cell in range(16)),
    ]
    body += [instruction(chance, length - i) for i in range(length)]
    end = _TELL_A if chance.random() < 0.9 else ((0x16, 0, 0, 0),)
    return (LOAD_NUMBER, (0x15, 1, 0, GETPID), ALLOW, *body, *end)


def any_args(chance: random.Random) -> tuple[int, ...]:
    return tuple(
        chance.choice((chance.choice(_INTERESTING), chance.getrandbits(64))) for _ in range(6)
    )


def expected(answer: Answer) -> int | None:
    """Return what the caller sees, None for its end; 1 stands for a call that was made."""
    if answer.allows:
        return 1
    if answer.action is Action.USER_NOTIF:
        return -errno.ENOSYS  # nobody listens to these filters
    if answer.action in (Action.ERRNO, Action.TRACE):
        return -answer.errno
    return None


def check(
    kernel: Kernel, programs: Sequence[Program], calls: Sequence[tuple[int, ...]]
) -> set[int | None]:
    outcome = kernel.ask(programs, [(GETPID, args) for args in calls])
    assert outcome.refused == 0, f"the kernel refuses the filter: {programs}"
    seen: list[int | None] = [min(result, 1) for result in outcome.results]
    if outcome.signal:
        assert outcome.signal == signal.SIGSYS
        seen.append(None)
    answers = [
        expected(answer_of(programs, Call("getpid", GETPID, args))) for args in calls[: len(seen)]
    ]
    assert seen == answers, (programs, calls)
    assert outcome.signal or len(seen) == len(calls)
    return set(seen)


@pytest.mark.parametrize("seed", range(3))
def test_random_filters_answer_as_the_kernel_does(kernel: Kernel, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - repeatable, no secrets
    seen: set[int | None] = set()
    for _ in range(CASES // 3):
        programs = [any_program(chance) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
        seen |= check(kernel, programs, [any_args(chance) for _ in range(CALLS)])
    assert {None, 1} < seen
    assert len(seen) > 100, "these filters tell too little"


@pytest.mark.parametrize("older", _RETURNS)
def test_the_strongest_action_wins_as_in_the_kernel(kernel: Kernel, older: int) -> None:
    for newer in _RETURNS:
        programs = [
            (LOAD_NUMBER, (0x15, 1, 0, GETPID), ALLOW, (0x06, 0, 0, answer))
            for answer in (older, newer)
        ]
        check(kernel, programs, [(0,) * 6])


def test_what_is_not_known_is_never_taken_for_less_than_it_can_be() -> None:
    chance = random.Random(7)  # noqa: S311 - the same
    for _ in range(2000):
        program = any_program(chance)
        known = Call("getpid", GETPID, any_args(chance)).words()
        hidden: list[Word] = [
            None if i > 1 and chance.random() < 0.5 else w for i, w in enumerate(known)
        ]
        values = run(program, hidden)
        assert run(program, known) <= values or Action.KILL_PROCESS in values or 0 in values
