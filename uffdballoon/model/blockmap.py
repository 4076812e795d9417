# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's memory as a picture: one cell for each 2 MiB of guest-physical memory.

A cell is a letter, so that a guest of 1 TiB is half a megabyte, and what is done
to all of them is done by functions of ``bytes``.
"""

from __future__ import annotations

import enum
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from uffdballoon.errors import ControlError
from uffdballoon.model.addresses import HUGE_BYTES, Gpa, GpaRange, round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from uffdballoon.model.ram import Segment

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


@dataclass(frozen=True, slots=True)
class Region:
    """Blocks of guest memory one after the other; ``gpa`` is a multiple of 2 MiB."""

    gpa: Gpa
    letters: bytes

    @property
    def span(self) -> GpaRange:
        return GpaRange.of(self.gpa, len(self.letters) * HUGE_BYTES)

    def states(self) -> Iterator[tuple[GpaRange, BlockState]]:
        """Yield the runs of blocks of the same state."""
        at = int(self.gpa)
        for letter, run in itertools.groupby(self.letters):
            size_bytes = sum(1 for _ in run) * HUGE_BYTES
            yield GpaRange.of(at, size_bytes), STATE_OF_BYTE[letter]
            at += size_bytes


class Tally(NamedTuple):
    """Blocks of 2 MiB of the host by how much of them is ballooned: a part, all, nothing."""

    broken: int
    whole: int
    untouched: int

    @classmethod
    def total(cls, parts: Iterable[Tally]) -> Tally:
        """Add up the counts of several RAM blocks."""
        return cls(*(sum(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True, slots=True)
class RamBlockTally:
    """A RAM block: its cells by state, and its huge pages by what the balloon left of them."""

    idstr: str
    size_bytes: int
    backing: str
    numa_node: int | None
    states: dict[BlockState, int]
    tally: Tally

    def as_dict(self) -> dict[str, Any]:
        return {
            "idstr": self.idstr,
            "size": self.size_bytes,
            "backing": self.backing,
            "numa_node": self.numa_node,
            "states": _by_name(self.states),
            **self.tally._asdict(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RamBlockTally:
        return cls(
            idstr=fields["idstr"],
            size_bytes=fields["size"],
            backing=fields["backing"],
            numa_node=fields["numa_node"],
            states={BlockState(name): count for name, count in fields["states"].items()},
            tally=Tally(*(fields[name] for name in Tally._fields)),
        )


@dataclass(frozen=True, slots=True)
class BlockMap:
    """All of a guest's memory; ``recent_s`` is how long a touch is shown."""

    pid: int
    ram_bytes: int
    recent_s: float
    regions: tuple[Region, ...]
    ram_blocks: tuple[RamBlockTally, ...]

    @property
    def allocated_bytes(self) -> int:
        """The size of all RAM blocks; ``ram_bytes`` is without what firmware lies over."""
        return sum(block.size_bytes for block in self.ram_blocks)

    def counts(self) -> dict[BlockState, int]:
        """Count the blocks in each state."""
        return count_states(region.letters for region in self.regions)

    def to_wire(self) -> dict[str, Any]:
        """Return it as it goes over the control socket, its cells as runs of letters."""
        regions = [{"gpa": r.gpa, "runs": encode_runs(r.letters)} for r in self.regions]
        return {**self._facts(), "regions": regions}

    def as_dict(self) -> dict[str, Any]:
        """Return it in the shape of ``map --json``: runs in words."""
        regions = [
            {
                "gpa": region.gpa,
                "size": region.span.size_bytes,
                "runs": [
                    {"gpa": span.start, "size": span.size_bytes, "state": state.value}
                    for span, state in region.states()
                ],
            }
            for region in self.regions
        ]
        return {**self._facts(), "regions": regions}

    def _facts(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "block_bytes": HUGE_BYTES,
            "ram_bytes": self.ram_bytes,
            "recent_s": self.recent_s,
            "states": _by_name(self.counts()),
            "ram_blocks": [block.as_dict() for block in self.ram_blocks],
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> BlockMap:
        """Undo to_wire(); raise ControlError for a state that is not known here."""
        return cls(
            pid=fields["pid"],
            ram_bytes=fields["ram_bytes"],
            recent_s=fields["recent_s"],
            regions=tuple(
                Region(Gpa(region["gpa"]), _decode_letters(region["runs"]))
                for region in fields["regions"]
            ),
            ram_blocks=tuple(RamBlockTally.from_dict(block) for block in fields["ram_blocks"]),
        )


def count_states(pieces: Iterable[bytes]) -> dict[BlockState, int]:
    """Count letters by state; every state is in it."""
    counts = dict.fromkeys(BlockState, 0)
    for letters in pieces:
        for state, letter in _LETTERS.items():
            counts[state] += letters.count(letter.encode())
    return counts


def regions_of(segments: Iterable[Segment]) -> list[GpaRange]:
    """List the stretches of blocks that hold guest RAM; ``segments`` in order of their gpa.

    A block counts that RAM reaches into, so that the few pages that firmware has
    cut out of low memory leave no gap.
    """
    regions: list[GpaRange] = []
    for segment in segments:
        start = round_down(segment.gpa_range.start, HUGE_BYTES)
        end = round_up(segment.gpa_range.end, HUGE_BYTES)
        if regions and start <= regions[-1].end:
            end = max(end, regions[-1].end)
            start = regions.pop().start
        regions.append(GpaRange(Gpa(start), Gpa(end)))
    return regions


def cells_of(segments: Iterable[Segment], regions: Sequence[Region]) -> list[bytes]:
    """Cut out the cells that some of the segments have a part in, each once."""
    pieces = []
    for span in regions_of(segments):
        region = next(r for r in regions if r.span.start <= span.start < r.span.end)
        first = (span.start - region.gpa) // HUGE_BYTES
        pieces.append(region.letters[first : first + span.size_bytes // HUGE_BYTES])
    return pieces


def _by_name(counts: Mapping[BlockState, int]) -> dict[str, int]:
    return {state.value: count for state, count in counts.items()}


def _decode_letters(runs: str) -> bytes:
    letters = "".join(letter * count for letter, count in decode_runs(runs))
    if not set(letters) <= set(STATE_OF_LETTER):
        raise ControlError(
            "the manager speaks of blocks in a state that is not known here",
            why="it is of another version",
            hint="use the same uffdballoon for the manager and the verb",
        )
    return letters.encode()
