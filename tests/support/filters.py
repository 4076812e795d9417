# SPDX-License-Identifier: GPL-2.0-or-later
"""Seccomp filters for tests: programs, and the kernel's own answer to them."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.model.seccomp import Action, Program

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOURCE = Path(__file__).with_name("filtered.c")
LOAD_NUMBER = (0x20, 0, 0, 0)
ALLOW = (0x06, 0, 0, int(Action.ALLOW))


def build_filtered(directory: Path) -> Path:
    binary = directory / "filtered"
    subprocess.run(["gcc", "-O1", "-Wall", "-o", str(binary), str(_SOURCE)], check=True)
    return binary


def packed(program: Program) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def answering(answers: dict[int, int]) -> Program:
    """Return a filter that gives these answers to these calls, and allows all others."""
    lines = [LOAD_NUMBER]
    for number, answer in answers.items():
        lines += [(0x15, 0, 1, number), (0x06, 0, 0, answer)]
    return (*lines, ALLOW)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the kernel did: the signal that ended the process, or 0, and the calls' results."""

    refused: int
    signal: int
    results: tuple[int, ...]


class Kernel:
    """Makes calls under filters in processes of their own."""

    def __init__(self, binary: Path) -> None:
        self._process = subprocess.Popen(
            [str(binary), "calls"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def close(self) -> None:
        self._process.communicate()

    def ask(
        self, programs: Sequence[Program], calls: Sequence[tuple[int, Sequence[int]]]
    ) -> Outcome:
        case = struct.pack("<II", len(programs), len(calls))
        for program in programs:
            case += struct.pack("<I", len(program)) + packed(program)
        case += b"".join(struct.pack("<7Q", number, *args) for number, args in calls)
        assert self._process.stdin
        self._process.stdin.write(case)
        self._process.stdin.flush()
        refused, signal, made = struct.unpack("<3I", self._read(12))
        return Outcome(refused, signal, struct.unpack(f"<{made}q", self._read(8 * made)))

    def _read(self, size_bytes: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(size_bytes)
        assert len(data) == size_bytes, "the helper ended"
        return data
