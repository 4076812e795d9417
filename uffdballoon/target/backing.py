# SPDX-License-Identifier: GPL-2.0-or-later
"""The file behind shared guest memory, opened by us."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import PermissionDeniedError, UnsupportedError
from uffdballoon.host.mapped_file import link_of
from uffdballoon.host.privileges import Capability, with_lacking
from uffdballoon.host.procfs import read_mappings
from uffdballoon.host.trace import TracedFile

if TYPE_CHECKING:
    from uffdballoon.host.procfs import Mapping
    from uffdballoon.model.ram import RamBlock


@dataclass(frozen=True, slots=True)
class BackingFile:
    """``file_start`` is the hva at which the file's first byte is, or would be."""

    fd: int
    file_start: int


def open_backing_file(pid: int, block: RamBlock) -> BackingFile:
    """Open the very file that a RAM block maps, deleted ones included; the caller closes it.

    Raises PermissionDeniedError, or UnsupportedError when no file stands there.
    """
    for mapping in read_mappings(pid):
        if not (mapping.span.start <= block.hva < mapping.span.end and mapping.inode):
            continue
        link = link_of(pid, mapping)
        try:
            fd = os.open(link, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            # EPERM is the link's (fs/proc/base.c: proc_map_files_get_link), EACCES the file's own.
            by_link = error.errno == errno.EPERM
            lacking = Capability.CHECKPOINT_RESTORE if by_link else Capability.DAC_OVERRIDE
            raise PermissionDeniedError(
                f"cannot open the memory file of RAM block {block.idstr!r}",
                why="/proc/PID/map_files is refused" if by_link else f"{mapping.path} is",
                hint=with_lacking(lacking),
                pid=pid,
                errno=error.errno,
            ) from error
        found = os.fstat(fd)
        if found.st_ino != mapping.inode:
            os.close(fd)
            break
        return BackingFile(fd, mapping.span.start - mapping.offset_bytes)
    raise UnsupportedError(
        f"no file stands behind RAM block {block.idstr!r}",
        why="its mapping changed while it was looked at",
        hint="attach again",
        pid=pid,
    )


def fds_of_block(pid: int, block: RamBlock) -> list[TracedFile]:
    """List the target's own fds of the file behind a RAM block, by which it punches holes."""
    for mapping in read_mappings(pid):
        if not (mapping.span.start <= block.hva < mapping.span.end and mapping.inode):
            continue
        offset_bytes = mapping.offset_bytes + block.hva - mapping.span.start
        return [
            TracedFile(int(entry.name), offset_bytes, block.hva, block.size_bytes)
            for entry in Path(f"/proc/{pid}/fd").iterdir()
            if _is_of(entry, mapping)
        ]
    return []


def _is_of(entry: Path, mapping: Mapping) -> bool:
    """Tell whether an fd is of the mapped file; inodes are numbered by each file system anew."""
    try:
        found = entry.stat()
    except OSError:
        return False  # closed meanwhile
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    return (found.st_ino, device) == (mapping.inode, mapping.device)
