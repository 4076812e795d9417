# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's command line says of the guest's memory."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.errors import UsageError
from uffdballoon.model.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_DEFAULT_RAM_BYTES = 128 << 20  # QEMU, hw/core/machine.c: default_ram_size


@dataclass(frozen=True)
class MemoryOptions:
    """``ram_bytes`` of -m; ``nodes`` maps memory backends to the NUMA nodes they make up."""

    machine: str
    ram_bytes: int
    has_slots: bool
    moved_hole: bool
    nodes: Mapping[str, int]

    @property
    def is_q35(self) -> bool:
        return self.machine == "q35" or self.machine.startswith("pc-q35-")

    @property
    def is_i440fx(self) -> bool:
        return self.machine == "pc" or self.machine.startswith("pc-i440fx-")


def parse_cmdline(arguments: Sequence[str]) -> MemoryOptions:
    """Read -machine, -m and -numa; what cannot be read counts as not given."""
    machine, ram_bytes = "pc", _DEFAULT_RAM_BYTES
    has_slots = moved_hole = False
    nodes: dict[str, int] = {}
    for name, value in _options(arguments):
        head, options = _split(value)
        if name in ("machine", "M"):
            machine = options.get("type", head or machine)
            moved_hole = moved_hole or "max-ram-below-4g" in options
        elif name == "m":
            ram_bytes = _memory_bytes(options.get("size", head), ram_bytes)
            has_slots = options.get("slots", "0") != "0"
        elif name == "numa" and head == "node" and "memdev" in options:
            with contextlib.suppress(ValueError):
                nodes[options["memdev"]] = int(options.get("nodeid", len(nodes)))
    return MemoryOptions(machine, ram_bytes, has_slots, moved_hole, nodes)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, value in itertools.pairwise(arguments):
        if name.startswith("-"):
            yield name.lstrip("-"), value


def _split(value: str) -> tuple[str, dict[str, str]]:
    """Split ``head,key=value,...``; the head is what has no key."""
    parts = value.split(",")
    head = parts[0] if "=" not in parts[0] else ""
    return head, dict(part.split("=", 1) for part in parts if "=" in part)


def _memory_bytes(text: str, default: int) -> int:
    """Read -m's size, which is in MiB where it has no unit."""
    try:
        return parse_size(f"{text}M" if text.isdigit() else text)
    except UsageError:
        return default
