# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of QEMU's human monitor, read. Written against QEMU 7.2.

Newer versions add columns to `info ramblock`; what follows the ones read here
is passed over.
"""

from __future__ import annotations

import re

from uffdballoon.model.sizes import parse_size
from uffdballoon.vmm.qemu.facts import RamBlockFact, RamSection

# QEMU, system/memory.c: mtree_print_flatview()
_VIEW = re.compile(r"FlatView #\d+")
_SPACE = re.compile(r' AS "(?P<name>[^"]*)", root: .*')
_SECTION = re.compile(
    r"  (?P<start>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, ram\): "
    r"(?P<name>.*?)(?: @(?P<offset>[0-9a-f]{16}))?"
    # The accelerator that has it as its own: upper case, lower case, or not told, by version
    r"(?: (?i:kvm|tcg|hvf|whpx|nvmm|hax|mshv|xen))?(?: ?\[\d{1,6}\])?"
)
# QEMU, system/physmem.c: ram_block_format()
_BLOCK = re.compile(
    # A name is what no blanks end: without that, and without possessive blanks, a line of
    # blanks takes time by its square.
    r"\s*+(?P<name>\S(?:.*?\S)??)\s++(?P<page>\d{1,6} [KMGT]iB)\s+0x[0-9a-f]+\s+0x[0-9a-f]+\s+"
    r"0x(?P<total>[0-9a-f]+)\b.*"
)
# QEMU, monitor/hmp-cmds.c: hmp_gpa2hva()
_HVA = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is 0x(?P<hva>[0-9a-f]+)\s*")


def parse_mtree(text: str) -> tuple[RamSection, ...]:
    """Read the RAM of the address space ``memory`` from `info mtree -f`."""
    sections: list[RamSection] = []
    wanted = False
    for line in text.split("\n"):
        space = _SPACE.fullmatch(line)
        if _VIEW.fullmatch(line.strip()):
            wanted = False
        elif space:
            wanted = wanted or space["name"] == "memory"
        elif wanted and (match := _SECTION.fullmatch(line.rstrip())):
            start = int(match["start"], 16)
            sections.append(
                RamSection(
                    gpa=start,
                    size_bytes=int(match["last"], 16) - start + 1,
                    idstr=match["name"],
                    offset_bytes=int(match["offset"] or "0", 16),
                )
            )
    return tuple(sections)


def parse_ramblock(text: str) -> tuple[RamBlockFact, ...]:
    matches = (_BLOCK.fullmatch(line) for line in text.split("\n"))
    return tuple(
        RamBlockFact(
            idstr=match["name"],
            page_bytes=parse_size(match["page"]),
            size_bytes=int(match["total"], 16),
        )
        for match in matches
        if match
    )


def parse_gpa2hva(text: str) -> int | None:
    """Read the hva; None when the monitor says that there is no memory at that gpa."""
    match = _HVA.fullmatch(text.strip())
    return int(match["hva"], 16) if match else None
