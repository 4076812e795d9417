# SPDX-License-Identifier: GPL-2.0-or-later
"""A short look by the fuzzers' own targets; `make fuzz` looks for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

_SEEDS = Path(__file__).parents[1] / "fuzz" / "corpus"
_INPUTS = 1500
_LONGEST_BYTES = 4096


def _mutant(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Bend a seed: bytes changed, cut out, doubled, or taken over from another seed."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        end = at + chance.randint(0, 20)
        match chance.randrange(6):
            case 0:
                data[at:end] = b""
            case 1:
                data[at:at] = data[at:end] * chance.choice((1, 2, 50))
            case 2:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                data[at : at + 1] = chance.choice((b"\n", b"\0", b",", b"=", b"9", b"-", b" "))
            case 4:
                other = chance.choice(seeds)
                start = chance.randint(0, len(other))
                data[at:end] = other[start : start + chance.randint(0, 40)]
            case _:
                data[at:at] = chance.choice(
                    (b"9" * 25, b"\xc2\xb2", b"\xd9\xa1", b"1e999", b"[" * 99)
                )
    return bytes(data[:_LONGEST_BYTES])


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused_by_a_named_error(name: str) -> None:
    seeds = [path.read_bytes() for path in sorted((_SEEDS / name).iterdir())]
    chance = random.Random(f"{name} 1")  # noqa: S311 - repeatable, not secret
    for seed in seeds:
        TARGETS[name](seed)
    for _ in range(_INPUTS):
        TARGETS[name](_mutant(chance, seeds))
