# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mapping is a RAM block, by what QEMU maps one like: all that could be it are looked at.

Guest RAM is always among the candidates. So one candidate is it, and several are refused,
whatever plugged them in, unless they differ in what the command line says of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.host.procfs import Mapping, stretches_of_size
from uffdballoon.model.addresses import HUGE_BYTES, HvaRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.vmm.qemu.cmdline import Backend, MemoryOptions

_DELETED = " (deleted)"


class Candidate(NamedTuple):
    """``mapping`` is the first piece of what ``span`` covers."""

    span: HvaRange
    mapping: Mapping


def candidates(mappings: Sequence[Mapping], size_bytes: int) -> list[Candidate]:
    """Find all that can be a RAM block of that size.

    QEMU leaves a page without access behind each (util/mmap-alloc.c: qemu_ram_mmap()), and
    begins anonymous ones at whole huge pages (QEMU_VMALLOC_ALIGN, include/qemu/osdep.h). A
    thread's stack has that page below it, and none behind.
    """
    guards = {m.span.start for m in mappings if m.perms.startswith("---") and not m.inode}
    return [
        Candidate(span, mapping)
        for span, mapping in stretches_of_size(mappings, size_bytes)
        if span.end in guards
        and mapping.perms[2] == "-"
        and (mapping.inode or span.start % HUGE_BYTES == 0)
    ]


def match(
    options: MemoryOptions,
    mappings: Sequence[Mapping],
    size_bytes: int,
    backend: str,
    root: str = "/",
) -> list[Candidate]:
    """Return what can be that backend: one when it is certain.

    ``backend`` is the id of -object, or empty for the RAM that -m alone makes. ``root`` is the
    target's root directory as it is seen from here.
    """
    made_by = options.backends.get(backend)
    found = [
        c
        for c in candidates(mappings, size_bytes)
        if _is_of_kind(options, backend, made_by, c.mapping)
    ]
    if len(found) > 1:
        path = made_by.path if made_by else options.mem_path
        named = [c for c in found if path and _is_named(c.mapping, path, backend or "pc.ram", root)]
        found = named if len(named) == 1 else found
    return found


def _is_of_kind(
    options: MemoryOptions, backend: str, made_by: Backend | None, mapping: Mapping
) -> bool:
    if made_by is None:
        # An id that is not known may be of any kind.
        return bool(backend or options.mem_path) or not (mapping.inode or mapping.shared)
    if mapping.shared is not made_by.shared:
        return False
    if made_by.kind == "memory-backend-ram":
        return made_by.shared or not mapping.inode
    if made_by.kind == "memory-backend-memfd":
        return mapping.path.startswith("/memfd:")
    return bool(mapping.inode)


def _is_named(mapping: Mapping, path: str, name: str, root: str) -> bool:
    """Whether a file is the one at ``path``, or a file that QEMU made in that directory.

    QEMU, system/physmem.c: file_ram_open() names it after the memory region. Mappings are named
    as seen from here (fs/proc/task_mmu.c: show_map_vma()), and ``path`` is the target's own: below
    its root, or, of a QEMU that went there later (-chroot), not.
    """
    file = mapping.path.removesuffix(_DELETED)
    files = {file, file.removeprefix(root)} if file.startswith(f"{root}/") else {file}
    if path in files:
        # One that was removed may be it as well: another may have got its name since.
        return True
    made = {f"{path.rstrip('/')}/qemu_back_mem.{n}." for n in (name, f"_objects_{name}")}
    return any(
        file.startswith(head) and "/" not in file[len(head) :] for file in files for head in made
    )
