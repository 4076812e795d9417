# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's monitor knows of the guest's memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class RamSection:
    """A stretch of guest-physical memory, as `info mtree -f` lists it."""

    gpa: int
    size_bytes: int
    idstr: str
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class RamBlockFact:
    """A line of `info ramblock`."""

    idstr: str
    page_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class MonitorFacts:
    """Answers of the monitor, parsed.

    ``hvas`` maps the gpa of each section's start to its hva; ``memdevs`` are the
    ids of memory backends; ``nodes`` maps those of hot-plugged ones to their NUMA
    nodes; ``vcpu_tids`` maps thread ids to vCPU numbers.
    """

    version: str
    sections: tuple[RamSection, ...]
    blocks: tuple[RamBlockFact, ...]
    hvas: Mapping[int, int]
    memdevs: frozenset[str]
    nodes: Mapping[str, int] = field(default_factory=dict)
    vcpu_tids: Mapping[int, int] = field(default_factory=dict)
    balloon_actual_bytes: int | None = None
