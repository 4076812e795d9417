# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy ladder: what is done about a violation, gentlest first, as one string."""

from __future__ import annotations

import re
from dataclasses import dataclass

from uffdballoon.errors import UsageError
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.durations import parse_duration
from uffdballoon.model.ladder import Rung, RungKind
from uffdballoon.model.sizes import parse_size

_HARMFUL = (RungKind.FREEZE, RungKind.PAUSE, RungKind.POISON, RungKind.KILL)
_PART = re.compile(r"[^,]*")
_KINDS = {kind.value: kind for kind in RungKind}
_COUNT = re.compile(r"\d+", re.ASCII)
_RATE_HINT = (
    "write it like throttle=1000/s (pages of 4 KiB), throttle=4MiB/s or throttle=1000/s:64M"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rungs, in the order in which they are tried.

    All but the last may decline a touch; the last answers every one.
    """

    rungs: tuple[Rung, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.rungs))

    def has(self, kind: RungKind) -> bool:
        return any(rung.kind is kind for rung in self.rungs)

    @property
    def harms(self) -> bool:
        """Whether a rung stops a vCPU for good, or ends the guest: freeze, pause, poison, kill."""
        return any(map(self.has, _HARMFUL))

    @property
    def holds(self) -> bool:
        """Whether whoever touches may have to wait, or worse."""
        return self.harms or self.rungs[-1].kind is RungKind.THROTTLE


DEFAULT_POLICY = Policy((Rung(RungKind.ZERO_READ), Rung(RungKind.OBSERVE)))
"""It never harms a guest that nobody asked to harm."""


def parse_policy(text: str) -> Policy:
    """Read a ladder such as ``zero-read,throttle=1000/s:64MiB,pause``.

    Raises UsageError that points at the character.
    """
    rungs: list[Rung] = []
    at = 0
    while True:
        match = _PART.match(text, at)
        assert match is not None
        rungs.append(_rung(text, at, match[0], rungs))
        at = match.end() + 1
        if at > len(text):
            break
    last = rungs[-1]
    if not last.may_be_last:
        why = "after the freeze" if last.kind is RungKind.FREEZE else "of writes"
        raise _error(
            text,
            len(text),
            f"the ladder does not say what becomes {why}",
            "end with a rung that answers all, as in `zero-read,observe`",
        )
    return Policy(tuple(rungs))


def _rung(text: str, at: int, part: str, before: list[Rung]) -> Rung:
    word = part.strip()
    at += len(part) - len(part.lstrip())
    if before and before[-1].is_final:
        raise _error(
            text,
            at,
            f"nothing comes after {str(before[-1])!r}, which answers every touch",
            "drop what follows it",
        )
    name, equals, value = word.partition("=")
    kind = _KINDS.get(name)
    if kind is None:
        raise _error(text, at, f"{name!r} is no rung", f"rungs are {', '.join(_KINDS)}")
    if any(rung.kind is kind for rung in before):
        raise _error(text, at, f"{name!r} is there twice", "each rung comes once")
    value_at = at + len(name) + len(equals)
    if kind is RungKind.THROTTLE:
        return _throttle(text, value_at, value)
    if kind is RungKind.FREEZE:
        return Rung(kind, _duration(text, value_at, value) if equals else None)
    if equals:
        raise _error(text, value_at, f"{name!r} takes no value", f"write just {name}")
    return Rung(kind)


def _duration(text: str, at: int, value: str) -> int:
    try:
        return parse_duration(value)
    except UsageError as error:
        raise _error(text, at, error.what, error.hint) from error


def _throttle(text: str, at: int, value: str) -> Rung:
    rate, colon, burst = value.partition(":")
    if not rate.endswith("/s"):
        raise _error(text, at + len(rate), "a rate ends with /s", _RATE_HINT)
    bytes_per_s = _amount(text, at, rate.removesuffix("/s"))
    burst_at = at + len(rate) + len(colon)
    return Rung.throttle(bytes_per_s, _amount(text, burst_at, burst) if colon else bytes_per_s)


def _amount(text: str, at: int, value: str) -> int:
    """Read pages of 4 KiB, or a size; return bytes."""
    try:
        size = int(value) * PAGE_BYTES if _COUNT.fullmatch(value) else parse_size(value)
    except (UsageError, ValueError) as error:
        raise _error(
            text, at, f"{value!r} is no number of pages and no size", _RATE_HINT
        ) from error
    if not PAGE_BYTES <= size < 1 << 62:
        raise _error(text, at, f"{value!r} is less than a page, or too much", _RATE_HINT)
    return size


def _error(text: str, at: int, why: str, hint: str) -> UsageError:
    return UsageError(
        f"--policy {text!r} is no ladder", why=f"at character {at + 1}: {why}", hint=hint
    )
