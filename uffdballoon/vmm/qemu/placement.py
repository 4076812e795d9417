# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a machine type puts its RAM, as far as that is certain for every QEMU that has it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.model.addresses import Gpa
from uffdballoon.model.ram import RamBlock, Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.vmm.qemu.cmdline import MemoryOptions

_G = 1 << 30
_4G = 4 * _G
# The legacy hole for VGA and option ROMs; hw/i386/pc.c maps ROMs over RAM there.
_LOW_HOLE = (0xA0000, 0x100000)
# QEMU, hw/i386/pc.c: AMD_HT_START
_AMD_HOLE = 0xFD00000000
_UPSTREAM = re.compile(r"pc-(?:i440fx|q35)-(?P<major>\d{1,3})\.(?P<minor>\d{1,3})(?:\.\d{1,3})?")
# RHEL's, and Ubuntu's by the name of a release; both began with QEMU 2.0's layout.
_DOWNSTREAM = re.compile(
    r"ubuntu|ubuntu-q35|pc-(?:i440fx|q35)-(?:rhel(?!7\.0)(?:[789]|1\d)(?:\.\d+)*|[a-z]+(?:-v\d)?"
    r"(?:-(?:hpb|maxcpus))?)"
)


class Split(NamedTuple):
    """RAM of ``from_bytes`` and more is split at ``low_bytes``; less lies below 4 GiB."""

    from_bytes: int
    low_bytes: int | None


def split_of(options: MemoryOptions) -> Split | None:
    """Return where the machine splits its RAM; None for a machine that is not known.

    ``low_bytes`` is None where versions of QEMU, or what a distributor made of it, may
    differ. Sources, in QEMU: hw/i386/pc_piix.c: pc_init1(), whose machines up to
    pc-i440fx-1.7 do not align to gigabytes; pc_q35.c: pc_q35_init(); microvm.c:
    microvm_memory_init(), which split like q35 in 4.2; isapc did and did not align.
    """
    machine = options.machine_type
    version = _version_of(machine)
    is_modern = (
        machine in ("pc", "q35")
        or (version is not None and version >= (2, 0))
        or _DOWNSTREAM.fullmatch(machine) is not None
    )
    if options.is_q35:
        return Split(0xB0000000, 0x80000000 if is_modern else None)
    if machine.startswith("pc-i440fx-1.") and version is not None:
        return Split(0xE0000000, 0xE0000000)
    if options.is_i440fx:
        return Split(0xE0000000, 0xC0000000 if is_modern else None)
    if machine == "isapc":
        return Split(0xE0000000, None)
    if machine == "microvm":
        return Split(0xB0000000, None)
    return None


def why_unclear(options: MemoryOptions) -> str:
    """Say why it is not certain where the guest's RAM lies; empty when it is."""
    split = split_of(options)
    reasons = list(options.doubts)
    if options.ram_bytes is None:
        reasons.append("its size is not known")
    elif split is None:
        reasons.append(f"where machine type {options.machine!r} puts its RAM is not known here")
    elif options.ram_bytes >= split.from_bytes and split.low_bytes is None:
        reasons.append(f"versions of {options.machine!r} differ in where they split so much RAM")
    elif options.ram_bytes >= split.from_bytes and _may_be_above_1t(options, split):
        reasons.append("with an AMD CPU so much memory may lie above 1 TiB")
    if options.moved_hole:
        reasons.append("max-ram-below-4g moves its PCI hole")
    return "; ".join(reasons[:2])


def place(options: MemoryOptions, blocks: Sequence[RamBlock]) -> list[Segment]:
    """Lay out blocks that follow one another as the machine does.

    Call it only when why_unclear() is empty.
    """
    split = split_of(options)
    assert split is not None
    size_bytes = sum(block.size_bytes for block in blocks)
    low = size_bytes
    if size_bytes >= split.from_bytes:
        assert split.low_bytes is not None
        low = split.low_bytes
    pieces = [
        (0, 0, min(low, _LOW_HOLE[0])),
        (_LOW_HOLE[1], _LOW_HOLE[1], low),
        (_4G, low, size_bytes),
    ]
    segments = []
    start = 0
    for block in blocks:
        for gpa, first, end in pieces:
            begin, stop = max(first, start), min(end, start + block.size_bytes)
            if begin < stop:
                at = Gpa(gpa + begin - first)
                segments.append(Segment(at, stop - begin, block, begin - start))
        start += block.size_bytes
    return segments


def _version_of(machine: str) -> tuple[int, int] | None:
    match = _UPSTREAM.fullmatch(machine)
    return (int(match["major"]), int(match["minor"])) if match else None


def _may_be_above_1t(options: MemoryOptions, split: Split) -> bool:
    """Whether RAM above 4 GiB may have been moved past AMD's hole below 1 TiB.

    QEMU, hw/i386/pc.c: pc_memory_init() since 7.1, when what pc_max_used_gpa() says
    reaches the hole: RAM, slots, and a 64-bit PCI hole of 2 GiB (i440fx) or 32 GiB (q35).
    """
    version = _version_of(options.machine_type)
    if version is not None and version <= (7, 0):
        return False
    assert options.ram_bytes is not None
    top = _4G + options.ram_bytes - (split.low_bytes or 0)
    top += max(0, (options.max_bytes or 0) - options.ram_bytes) + (options.slots + 2) * _G
    top += (32 if options.is_q35 else 2) * _G
    return options.moved_hole64 or top > _AMD_HOLE
