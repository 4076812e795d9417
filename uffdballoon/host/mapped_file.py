# SPDX-License-Identifier: GPL-2.0-or-later
"""The file behind a mapping of another process: what kind it is, and in what pages.

Told by the mapped file itself. smaps would tell, too, but to read it walks all page tables of
the process under its memory lock: seconds, of a large guest.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from uffdballoon._native import ffi, lib
from uffdballoon.host.errnos import check
from uffdballoon.host.procfs import Mapping, file_system_of
from uffdballoon.model.addresses import PAGE_BYTES

# The magic numbers of statfs(2).
_TMPFS = 0x01021994
_HUGETLBFS = 0x958458F6
# linux/fs.h, struct procmap_query (Linux 6.11): size, flags, address, then what is answered, of
# which the page size is the seventh
_PROCMAP_QUERY = 0xC0686611
_QUERY = struct.Struct("=9Q4I2Q")


@dataclass(frozen=True, slots=True)
class MappedFile:
    """What stands behind a mapping; ``description`` says it to a person.

    ``is_internal``: on a mount of the kernel's own, which no list of mounts has.
    """

    is_shmem: bool
    is_internal: bool
    page_bytes: int
    description: str


def link_of(pid: int, mapping: Mapping) -> str:
    """Return the path by which a mapped file is opened, a deleted one included."""
    return f"/proc/{pid}/map_files/{mapping.span.start:x}-{mapping.span.end:x}"


def mapped_file(pid: int, mapping: Mapping) -> MappedFile:
    """Tell what file a mapping is of; by the list of mounts where it may not be opened.

    Raises TargetGoneError or PermissionDeniedError.
    """
    listed = file_system_of(pid, mapping)
    seen = _look_at(pid, mapping)
    if seen is None:
        return MappedFile(
            is_shmem=listed == "tmpfs" or mapping.path.startswith(("/memfd:", "/dev/zero (del")),
            is_internal=not listed,
            page_bytes=PAGE_BYTES,
            description=f"a file on {listed or 'an unknown file system'}",
        )
    mode, magic, block_bytes = seen
    is_file = stat.S_ISREG(mode)  # /dev is a tmpfs as well, and a device is no memory of it
    return MappedFile(
        is_shmem=is_file and magic == _TMPFS,
        is_internal=not listed,
        page_bytes=block_bytes if is_file and magic == _HUGETLBFS else PAGE_BYTES,
        description=f"a file on {listed or f'a file system of type {magic:#x}'}"
        if is_file
        else f"the device {mapping.path}",
    )


def page_bytes_of(pid: int, mapping: Mapping) -> int:
    """Return the size of the pages that a mapping is made of.

    Raises TargetGoneError or PermissionDeniedError.
    """
    return _queried_page_bytes(pid, mapping) or (
        mapped_file(pid, mapping).page_bytes if mapping.inode else PAGE_BYTES
    )


def _queried_page_bytes(pid: int, mapping: Mapping) -> int:
    """Ask the kernel; 0 for one that has no answer (before Linux 6.11)."""
    query = bytearray(_QUERY.pack(_QUERY.size, 0, mapping.span.start, *[0] * 12))
    try:
        with Path(f"/proc/{pid}/maps").open("rb") as maps:
            fcntl.ioctl(maps, _PROCMAP_QUERY, query)
    except OSError:
        return 0
    return int(_QUERY.unpack(query)[6])


def _look_at(pid: int, mapping: Mapping) -> tuple[int, int, int] | None:
    """Return a mapped file's mode, and its file system's magic number and block size."""
    try:
        fd = os.open(link_of(pid, mapping), os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None  # not permitted, or cut in two meanwhile
    try:
        found = ffi.new("uint64_t[2]")
        check(lib.uffdb_file_system(fd, found, found + 1), "cannot look at a file", pid=pid)
        return os.fstat(fd).st_mode, int(found[0]), int(found[1])
    finally:
        os.close(fd)
