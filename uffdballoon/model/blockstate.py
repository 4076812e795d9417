# SPDX-License-Identifier: GPL-2.0-or-later
"""What a block of 2 MiB can be, by a word and by a letter."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN = re.compile(r"(\d*)(\D)")
_REPEATED = re.compile(rb"(.)\1+")


class BlockState(enum.Enum):
    """What a block of 2 MiB is; the last of these that applies.

    TOUCHED is a violation or a grant a short while ago. ARMED is a block that a
    window covers though nothing in it is ballooned.
    """

    ABSENT = "absent"
    OWNED_THP = "owned-thp"
    OWNED_4K = "owned-4k"
    ARMED = "armed"
    BALLOONED = "ballooned"
    PARTLY = "partly-ballooned"
    TOUCHED = "touched"

    @property
    def letter(self) -> str:
        return _LETTERS[self]


_LETTERS = {
    BlockState.ABSENT: ".",
    BlockState.OWNED_THP: "H",
    BlockState.OWNED_4K: "s",
    BlockState.ARMED: "a",
    BlockState.BALLOONED: "B",
    BlockState.PARTLY: "p",
    BlockState.TOUCHED: "!",
}
STATE_OF_LETTER = {letter: state for state, letter in _LETTERS.items()}
STATE_OF_BYTE = {ord(letter): state for letter, state in STATE_OF_LETTER.items()}


def encode_runs(letters: bytes) -> str:
    """Write runs of the same letter as a number and the letter: ``12H.3B``."""
    # The manager waits for this: only what repeats is looked at one by one.
    return _REPEATED.sub(lambda run: b"%d%b" % (len(run[0]), run[1]), letters).decode()


def decode_runs(text: str) -> Iterator[tuple[str, int]]:
    """Yield (letter, count); undoes encode_runs()."""
    for count, letter in _RUN.findall(text):
        yield letter, int(count or 1)
