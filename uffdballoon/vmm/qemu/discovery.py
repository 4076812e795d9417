# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the guest's RAM in the target: exactly with the monitor, else by what can be seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import UnsupportedError
from uffdballoon.host.mapped_file import mapped_file, page_bytes_of
from uffdballoon.host.procfs import Mapping, read_mappings
from uffdballoon.host.targetfiles import is_there, read_unchanged_file, root_of
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, Hva
from uffdballoon.model.ram import Backing, Layout, RamBlock, Segment
from uffdballoon.model.sizes import format_size
from uffdballoon.vmm.qemu.cmdline import MemoryOptions, parse_cmdline
from uffdballoon.vmm.qemu.matching import Candidate, match
from uffdballoon.vmm.qemu.placement import place, why_unclear

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from uffdballoon.vmm.qemu.facts import MonitorFacts

_SEVERAL = 2
# QEMU, system/vl.c: qemu_read_default_config_file(), in the directory that it was built for: by
# default and Debian, Red Hat, Proxmox, and as upstream installs it
_USER_CONFIGS = (
    "/etc/qemu/qemu.conf",
    "/etc/qemu-kvm/qemu.conf",
    "/etc/kvm/qemu.conf",
    "/usr/local/etc/qemu/qemu.conf",
)
# QEMU, system/vl.c: os_daemonize() goes to the root directory, and -chroot to another root
_MOVING = frozenset({"-daemonize", "--daemonize"})
_CHROOT = frozenset({"-chroot", "--chroot", "-run-with", "--run-with"})


def discover(pid: int, cmdline: Sequence[str], facts: MonitorFacts | None) -> Layout:
    """Return the gpa-to-hva map of the guest's RAM.

    Raises UnsupportedError when it cannot be told for certain, TargetGoneError
    and PermissionDeniedError.
    """
    options = options_of(pid, cmdline)
    mappings = read_mappings(pid)
    if facts is not None:
        return _from_monitor(pid, options, mappings, facts)
    return _from_outside(pid, options, mappings)


def options_of(pid: int, cmdline: Sequence[str]) -> MemoryOptions:
    """Read the command line of a QEMU, with the configuration files that it read."""
    has_moved = bool(_MOVING & set(cmdline))
    if not _CHROOT & set(cmdline):
        return parse_cmdline(
            cmdline,
            lambda path: read_unchanged_file(pid, path, has_moved=has_moved),
            [path for path in _USER_CONFIGS if is_there(pid, path)],
        )
    # It read them before: the root that it had then was ours, if anybody can tell.
    return parse_cmdline(
        cmdline, _refuse_old_root, [path for path in _USER_CONFIGS if Path(path).exists()]
    )


def _refuse_old_root(path: str) -> str:
    raise UnsupportedError(
        f"{path} cannot be read as QEMU read it",
        why="QEMU has gone to another root directory since (chroot)",
        hint="give its monitor with --qmp PATH",
    )


def _from_monitor(
    pid: int, options: MemoryOptions, mappings: Sequence[Mapping], facts: MonitorFacts
) -> Layout:
    """Build the layout from the monitor's answers and the mappings that they point to.

    The memory tree calls video RAM and firmware "ram", too: guest RAM is what the facts
    say is RAM.
    """
    sizes = {fact.idstr: fact for fact in facts.blocks}
    blocks: dict[str, tuple[RamBlock, ...]] = {}
    segments: list[Segment] = []
    unknown = [str(device) for device in facts.devices]
    ram = facts.ram
    for section in facts.sections:
        memdev = ram.get(section.idstr)
        if memdev is None:
            continue
        hva = facts.hvas.get(section.gpa)
        fact = sizes.get(section.idstr)
        if hva is None or fact is None:
            unknown.append(
                f"what device has {format_size(section.size_bytes)} of memory backend {memdev} "
                f"at gpa {section.gpa:#x}: not enforced"
            )
            continue
        if section.idstr not in blocks:
            start = Hva(hva - section.offset_bytes)
            mapping = _mapping_of(pid, mappings, start)
            block = RamBlock(
                idstr=section.idstr,
                hva=start,
                size_bytes=fact.size_bytes,
                page_bytes=fact.page_bytes,
                backing=_backing_of(pid, mapping, fact.page_bytes),
                shared=mapping.shared,
                numa_node=_node_of(options, facts, memdev),
                memdev=memdev if memdev in facts.memdevs else None,
                file_start=_file_start_of(mapping),
            )
            plugged = memdev in facts.nodes
            blocks[section.idstr] = (block,) if plugged else _by_node(options, block)
        segments.extend(
            _segments_of(
                section.gpa, section.offset_bytes, section.size_bytes, blocks[section.idstr]
            )
        )
    if not segments:
        raise UnsupportedError(
            f"process {pid} has no guest RAM that could be recognised",
            why="no memory backend is mapped into the guest's memory",
            hint="report this with the output of `info mtree -f` and `query-memdev`",
            pid=pid,
        )
    return Layout(
        tuple(segments), source=f"monitor of QEMU {facts.version}", unknown=tuple(unknown)
    )


def _node_of(options: MemoryOptions, facts: MonitorFacts, memdev: str) -> int | None:
    node = facts.nodes.get(memdev, options.nodes.get(memdev))
    if node is not None:
        return node
    return 0 if options.node_count < _SEVERAL and not options.doubts else None


def _by_node(options: MemoryOptions, block: RamBlock) -> tuple[RamBlock, ...]:
    """Cut up a block whose parts are of several NUMA nodes (-numa node,mem=SIZE).

    Nodes follow one another in order of their numbers (QEMU, hw/i386/acpi-build.c:
    build_srat()).
    """
    sizes = [(node, size) for node, size in options.node_bytes if size]
    if options.nodes or sum(size for _, size in sizes) != block.size_bytes:
        return (block,)
    parts = []
    start = block.hva
    for node, size_bytes in sizes:
        parts.append(dataclasses.replace(block, hva=start, size_bytes=size_bytes, numa_node=node))
        start = Hva(start + size_bytes)
    return tuple(parts)


def _segments_of(
    gpa: int, offset_bytes: int, size_bytes: int, blocks: Iterable[RamBlock]
) -> list[Segment]:
    """Lay the part of neighbouring blocks that begins at ``offset_bytes`` at a gpa."""
    segments = []
    start = 0
    for block in blocks:
        begin = max(offset_bytes, start)
        end = min(offset_bytes + size_bytes, start + block.size_bytes)
        if begin < end:
            at = Gpa(gpa + begin - offset_bytes)
            segments.append(Segment(at, end - begin, block, begin - start))
        start += block.size_bytes
    return segments


def _from_outside(pid: int, options: MemoryOptions, mappings: Sequence[Mapping]) -> Layout:
    reason = why_unclear(options)
    if reason:
        raise _needs_monitor(pid, reason)
    assert options.ram_bytes is not None
    blocks = []
    root = root_of(pid)
    for name, size_bytes, node in _wanted(pid, options, options.ram_bytes):
        found = match(options, mappings, size_bytes, name, root)
        if len(found) != 1:
            what = f"memory backend {name!r}" if options.nodes else "the guest's RAM"
            raise _needs_monitor(pid, f"{len(found)} of its mappings are as large as {what}")
        blocks.append(_found(pid, found[0], name, node))
    if len({block.hva for block in blocks}) != len(blocks):
        raise _needs_monitor(pid, "several memory backends are like one of its mappings")
    if len(blocks) == 1:
        blocks = list(_by_node(options, blocks[0]))
    unknown = [
        "the block's idstr and memory backend",
        "whether firmware shows RAM elsewhere than this machine type does by default",
    ]
    if options.nodes:
        unknown[0] = "the blocks' idstr"
    if options.has_slots:
        unknown.append("memory that was plugged in, as DIMMs or otherwise")
    config = ", the configuration file" if options.has_config else ""
    return Layout(
        tuple(place(options, blocks)),
        source=f"command line{config} and mappings",
        unknown=tuple(unknown),
    )


def _wanted(pid: int, options: MemoryOptions, ram_bytes: int) -> list[tuple[str, int, int | None]]:
    """List the backends that RAM is made of, in the order in which they are laid out."""
    if not options.nodes:
        node = 0 if options.node_count < _SEVERAL else None
        return [(options.ram_backend, ram_bytes, node)]
    wanted: list[tuple[str, int, int | None]] = []
    for name, node in sorted(options.nodes.items(), key=lambda item: item[1]):
        backend = options.backends.get(name)
        if backend is None or backend.size_bytes is None:
            raise _needs_monitor(pid, f"the size of memory backend {name!r} is not known")
        wanted.append((name, backend.size_bytes, node))
    if sum(size for _, size, _ in wanted) != ram_bytes:
        raise _needs_monitor(pid, "its NUMA nodes are not as large as its RAM together")
    return wanted


def _found(pid: int, candidate: Candidate, name: str, node: int | None) -> RamBlock:
    span, mapping = candidate
    page_bytes = page_bytes_of(pid, mapping)
    return RamBlock(
        idstr=name or "ram",
        hva=span.start,
        size_bytes=span.size_bytes,
        page_bytes=page_bytes,
        backing=_backing_of(pid, mapping, page_bytes),
        shared=mapping.shared,
        numa_node=node,
        memdev=name or None,
        file_start=_file_start_of(mapping),
    )


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
