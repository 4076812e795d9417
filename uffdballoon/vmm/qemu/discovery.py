# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the guest's RAM in the target: exactly with the monitor, else by what can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.errors import UnsupportedError
from uffdballoon.host.mapped_file import mapped_file, page_bytes_of
from uffdballoon.host.procfs import Mapping, read_mappings, stretches_of_size
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, Hva
from uffdballoon.model.ram import Backing, Layout, RamBlock, Segment
from uffdballoon.vmm.qemu.cmdline import MemoryOptions, parse_cmdline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.vmm.qemu.facts import MonitorFacts

_4G = 1 << 32
# The legacy hole for VGA and option ROMs; hw/i386/pc.c maps ROMs over RAM there.
_LOW_HOLE = (0xA0000, 0x100000)


def discover(pid: int, cmdline: Sequence[str], facts: MonitorFacts | None) -> Layout:
    """Return the gpa-to-hva map of the guest's RAM.

    Raises UnsupportedError when it cannot be told for certain, TargetGoneError
    and PermissionDeniedError.
    """
    options = parse_cmdline(cmdline)
    mappings = read_mappings(pid)
    if facts is not None:
        return _from_monitor(pid, options, mappings, facts)
    return _from_outside(pid, options, mappings)


def _from_monitor(
    pid: int, options: MemoryOptions, mappings: Sequence[Mapping], facts: MonitorFacts
) -> Layout:
    """Build the layout from the monitor's answers and the mappings that they point to.

    The memory tree calls video RAM and firmware "ram", too: guest RAM is what a
    memory backend stands behind, which is the case of ``-m`` alone as well
    (QEMU, hw/core/machine.c: create_default_memdev).
    """
    sizes = {fact.idstr: fact for fact in facts.blocks}
    blocks: dict[str, RamBlock] = {}
    segments = []
    for section in facts.sections:
        hva = facts.hvas.get(section.gpa)
        fact = sizes.get(section.idstr)
        if section.idstr not in facts.memdevs or hva is None or fact is None:
            continue
        block = blocks.get(section.idstr)
        if block is None:
            start = Hva(hva - section.offset_bytes)
            mapping = _mapping_of(pid, mappings, start)
            node = facts.nodes.get(section.idstr, options.nodes.get(section.idstr))
            block = RamBlock(
                idstr=section.idstr,
                hva=start,
                size_bytes=fact.size_bytes,
                page_bytes=fact.page_bytes,
                backing=_backing_of(pid, mapping, fact.page_bytes),
                shared=mapping.shared,
                numa_node=0 if node is None and not options.nodes else node,
                memdev=section.idstr,
                file_start=_file_start_of(mapping),
            )
            blocks[section.idstr] = block
        segments.append(Segment(Gpa(section.gpa), section.size_bytes, block, section.offset_bytes))
    if not segments:
        raise UnsupportedError(
            f"process {pid} has no guest RAM that could be recognised",
            why="no memory backend is mapped into the guest's memory",
            hint="report this with the output of `info mtree -f` and `query-memdev`",
            pid=pid,
        )
    return Layout(tuple(segments), source=f"monitor of QEMU {facts.version}")


def _from_outside(pid: int, options: MemoryOptions, mappings: Sequence[Mapping]) -> Layout:
    reason = _why_unclear(options)
    if reason:
        raise _needs_monitor(pid, reason)
    candidates = stretches_of_size(mappings, options.ram_bytes)
    if len(candidates) != 1:
        raise _needs_monitor(
            pid, f"{len(candidates)} of its mappings are as large as the guest's RAM"
        )
    span, mapping = candidates[0]
    page_bytes = page_bytes_of(pid, mapping)
    block = RamBlock(
        idstr="ram",
        hva=span.start,
        size_bytes=span.size_bytes,
        page_bytes=page_bytes,
        backing=_backing_of(pid, mapping, page_bytes),
        shared=mapping.shared,
        numa_node=0,
        file_start=_file_start_of(mapping),
    )
    unknown = [
        "the block's idstr and memory backend",
        "whether firmware shows RAM elsewhere than this machine type does by default",
    ]
    if options.has_slots:
        unknown.append("DIMMs that were plugged in later")
    return Layout(
        tuple(_default_segments(options, block)),
        source="command line and mappings",
        unknown=tuple(unknown),
    )


def _why_unclear(options: MemoryOptions) -> str:
    if not (options.is_q35 or options.is_i440fx):
        return f"where machine type {options.machine!r} puts its RAM is not known here"
    if options.moved_hole:
        return "max-ram-below-4g moves its PCI hole"
    if len(options.nodes) > 1:
        return "it has several NUMA nodes"
    return ""


def _default_segments(options: MemoryOptions, block: RamBlock) -> list[Segment]:
    """Lay the RAM out as the machine does (QEMU 7.2, hw/i386/pc_piix.c and pc_q35.c).

    pc_init1() and pc_q35_init(): RAM that does not fit below the hole is split
    at a lower, gigabyte-aligned place.
    """
    limit, split = (0xB0000000, 0x80000000) if options.is_q35 else (0xE0000000, 0xC0000000)
    low = split if block.size_bytes >= limit else block.size_bytes
    stretches = [(0, 0, min(low, _LOW_HOLE[0]))]
    if low > _LOW_HOLE[1]:
        stretches.append((_LOW_HOLE[1], _LOW_HOLE[1], low - _LOW_HOLE[1]))
    if block.size_bytes > low:
        stretches.append((_4G, low, block.size_bytes - low))
    return [Segment(Gpa(gpa), size, block, offset) for gpa, offset, size in stretches]


def _mapping_of(pid: int, mappings: Sequence[Mapping], hva: Hva) -> Mapping:
    for mapping in mappings:
        if mapping.span.start <= hva < mapping.span.end:
            return mapping
    raise UnsupportedError(
        f"process {pid} maps nothing at {hva:#x}",
        why="its monitor says that guest RAM is there",
        hint="give the monitor socket of this very QEMU",
        pid=pid,
    )


def _file_start_of(mapping: Mapping) -> int:
    return mapping.span.start - mapping.offset_bytes if mapping.inode else 0


def _backing_of(pid: int, mapping: Mapping, page_bytes: int) -> Backing:
    if page_bytes == HUGE_BYTES:
        return Backing.HUGETLBFS
    if page_bytes != PAGE_BYTES:
        raise UnsupportedError(
            f"guest RAM of process {pid} is in pages of {page_bytes >> 20} MiB",
            why="granules are 4 KiB and 2 MiB",
            hint="use 2 MiB huge pages",
            pid=pid,
        )
    if not mapping.inode:
        return Backing.ANON
    file = mapped_file(pid, mapping)
    if file.is_shmem:
        if mapping.path.startswith("/memfd:"):
            return Backing.MEMFD
        return Backing.SHMEM if file.is_internal else Backing.TMPFS
    raise UnsupportedError(
        f"guest RAM of process {pid} is {file.description}",
        why="memory that is zapped there would be read again from the file",
        hint="use memory-backend-ram, -memfd, or -file on tmpfs or hugetlbfs",
        pid=pid,
    )


def _needs_monitor(pid: int, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"the memory of process {pid} cannot be told from outside",
        why=why,
        hint="give its monitor with --qmp PATH",
        pid=pid,
    )
