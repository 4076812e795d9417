# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy ladder: what is done about a violation, gentlest first, as one string."""

from __future__ import annotations

import re
from dataclasses import dataclass

from uffdballoon.errors import UnsupportedError, UsageError
from uffdballoon.model.touch import Action

_WORDS = {
    "observe": Action.GRANT,
    "zero-read": Action.ZERO_READ,
    "kill": Action.KILL,
}
_PLANNED = ("throttle", "freeze", "pause", "poison")
_FINAL = (Action.GRANT, Action.KILL)
_PART = re.compile(r"[^,]*")


@dataclass(frozen=True, slots=True)
class Policy:
    """The rungs, in the order in which they are tried.

    All but the last may decline a touch; the last answers every one.
    """

    rungs: tuple[Action, ...]

    def __str__(self) -> str:
        words = {action: word for word, action in _WORDS.items()}
        return ",".join(words[rung] for rung in self.rungs)


DEFAULT_POLICY = Policy((Action.ZERO_READ, Action.GRANT))
"""It never harms a guest that nobody asked to harm."""


def parse_policy(text: str) -> Policy:
    """Read a ladder such as ``zero-read,observe``.

    Raises UsageError that points at the character, and UnsupportedError for a
    rung of the design that this version cannot perform.
    """
    rungs: list[Action] = []
    at = 0
    while True:
        match = _PART.match(text, at)
        assert match is not None
        rungs.append(_rung(text, at, match[0], rungs))
        at = match.end() + 1
        if at > len(text):
            break
    if rungs[-1] not in _FINAL:
        raise _error(
            text,
            len(text),
            "the last rung must answer writes, too",
            "end with observe or kill, as in `zero-read,observe`",
        )
    return Policy(tuple(rungs))


def _rung(text: str, at: int, part: str, before: list[Action]) -> Action:
    word = part.strip()
    at += len(part) - len(part.lstrip())
    if before and before[-1] in _FINAL:
        raise _error(text, at, f"nothing comes after {before[-1].value!r}", "drop what follows it")
    if word.partition("=")[0] in _PLANNED:
        raise UnsupportedError(
            f"the rung {word!r} cannot be performed yet",
            why=f"this version has {', '.join(_WORDS)}",
            hint="leave it out of --policy",
        )
    action = _WORDS.get(word)
    if action is None:
        raise _error(text, at, f"{word!r} is no rung", f"rungs are {', '.join(_WORDS)}")
    if action in before:
        raise _error(text, at, f"{word!r} is there twice", "each rung comes once")
    return action


def _error(text: str, at: int, why: str, hint: str) -> UsageError:
    return UsageError(
        f"--policy {text!r} is no ladder", why=f"at character {at + 1}: {why}", hint=hint
    )
