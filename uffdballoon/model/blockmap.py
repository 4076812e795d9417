# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's memory as a picture: one cell for each 2 MiB of guest-physical memory.

A cell is a letter, so that a guest of 1 TiB is half a megabyte, and what is done
to all of them is done by functions of ``bytes``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import ControlError
from uffdballoon.model.addresses import HUGE_BYTES, Gpa, GpaRange, round_down, round_up
from uffdballoon.model.blockstate import (
    STATE_OF_BYTE,
    STATE_OF_LETTER,
    BlockState,
    decode_runs,
    encode_runs,
)
from uffdballoon.model.records.maps import MapRegion, MapReport, MapRun, WireMap, WireRegion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from uffdballoon.model.ram import Segment
    from uffdballoon.model.records.maps import RamBlockMap


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
class BlockMap:
    """All of a guest's memory; ``recent_s`` is how long a touch is shown."""

    pid: int
    ram_bytes: int
    recent_s: float
    regions: tuple[Region, ...]
    ram_blocks: tuple[RamBlockMap, ...]
    vm: str = ""

    @property
    def allocated_bytes(self) -> int:
        """The size of all RAM blocks; ``ram_bytes`` is without what firmware lies over."""
        return sum(block.size for block in self.ram_blocks)

    def counts(self) -> dict[BlockState, int]:
        """Count the blocks in each state."""
        return count_states(region.letters for region in self.regions)

    def to_wire(self) -> WireMap:
        """Return it as it goes over the control socket, its cells as runs of letters."""
        return WireMap(
            pid=self.pid,
            vm=self.vm,
            block_bytes=HUGE_BYTES,
            ram_bytes=self.ram_bytes,
            recent_s=self.recent_s,
            states=self.counts(),
            ram_blocks=self.ram_blocks,
            regions=tuple(
                WireRegion(gpa=region.gpa, runs=encode_runs(region.letters))
                for region in self.regions
            ),
        )

    def report(self) -> MapReport:
        """Return it in the shape of ``map --json``: runs in words."""
        return MapReport(
            pid=self.pid,
            vm=self.vm,
            block_bytes=HUGE_BYTES,
            ram_bytes=self.ram_bytes,
            recent_s=self.recent_s,
            states=self.counts(),
            ram_blocks=self.ram_blocks,
            regions=tuple(
                MapRegion(
                    gpa=region.gpa,
                    size=region.span.size_bytes,
                    runs=tuple(
                        MapRun(gpa=span.start, size=span.size_bytes, state=state)
                        for span, state in region.states()
                    ),
                )
                for region in self.regions
            ),
        )

    @classmethod
    def from_wire(cls, told: WireMap) -> BlockMap:
        """Undo to_wire(); raise ControlError for a state that is not known here."""
        return cls(
            pid=told.pid,
            vm=told.vm,
            ram_bytes=told.ram_bytes,
            recent_s=told.recent_s,
            regions=tuple(
                Region(Gpa(region.gpa), _decode_letters(region.runs)) for region in told.regions
            ),
            ram_blocks=told.ram_blocks,
        )


def count_states(pieces: Iterable[bytes]) -> dict[BlockState, int]:
    """Count letters by state; every state is in it."""
    counts = dict.fromkeys(BlockState, 0)
    for letters in pieces:
        for letter, state in STATE_OF_BYTE.items():
            counts[state] += letters.count(letter)
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


def _decode_letters(runs: str) -> bytes:
    letters = "".join(letter * count for letter, count in decode_runs(runs))
    if not set(letters) <= set(STATE_OF_LETTER):
        raise ControlError(
            "the manager speaks of blocks in a state that is not known here",
            why="it is of another version",
            hint="use the same uffdballoon for the manager and the verb",
        )
    return letters.encode()
