# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host can do to the memory and the fds of another process."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.host.errnos import check
from uffdballoon.model.addresses import PAGE_BYTES, HvaRange

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESIDENT_BATCH = 512


class Advice(enum.IntEnum):
    """madvise(2) advice, asm-generic/mman-common.h."""

    WILLNEED = 3
    DONTNEED = 4
    COLD = 20
    PAGEOUT = 21
    DONTNEED_LOCKED = 24
    COLLAPSE = 25


def duplicate_fd(pidfd: int, remote_fd: int, *, pid: int) -> int:
    """Duplicate an fd of another process into ours, close-on-exec (pidfd_getfd(2))."""
    return check(
        lib.uffdb_pidfd_getfd(pidfd, remote_fd),
        f"cannot take fd {remote_fd} of process {pid}",
        pid=pid,
    )


def read_memory(pid: int, span: HvaRange) -> bytes:
    """Read a range of another process (process_vm_readv(2)); shorter where memory ends.

    It waits where a userfaultfd traps an absent page.
    """
    data = bytearray(span.size_bytes)
    got = check(
        lib.uffdb_process_read(pid, span.start, ffi.from_buffer(data), span.size_bytes),
        f"cannot read {span} of process {pid}",
        pid=pid,
    )
    return bytes(data[:got])


def write_memory(pid: int, hva: int, data: bytes) -> int:
    """Write to another process (process_vm_writev(2)); return the bytes written.

    It waits where a userfaultfd traps an absent page.
    """
    return check(
        lib.uffdb_process_write(pid, hva, ffi.from_buffer(data), len(data)),
        f"cannot write to process {pid} at {hva:#x}",
        pid=pid,
    )


def process_madvise(pidfd: int, ranges: Sequence[HvaRange], advice: Advice) -> int:
    """Advise ranges of another process; return the bytes advised, perhaps fewer than asked."""
    vector = ffi.new("struct uffdb_range[]", [(r.start, r.size_bytes) for r in ranges])
    return check(
        lib.uffdb_process_madvise(pidfd, vector, len(ranges), advice),
        f"process_madvise({advice.name}) failed",
    )


def punch_hole(fd: int, offset_bytes: int, size_bytes: int) -> None:
    """Free a part of a file; all mappings of it lose those pages (fallocate(2))."""
    check(lib.uffdb_punch_hole(fd, offset_bytes, size_bytes), "cannot punch a hole")


def resident(pagemap_fd: int, span: HvaRange) -> list[HvaRange]:
    """List the stretches that hold memory: present or swapped out, and not the zero page.

    ``pagemap_fd`` is an open /proc/PID/pagemap.
    """
    most = min(_RESIDENT_BATCH, span.size_bytes // PAGE_BYTES)  # single pages are asked often
    out = ffi.new("struct uffdb_range[]", most)
    after = ffi.new("uint64_t *", span.start)
    found: list[HvaRange] = []
    while after[0] < span.end:
        start = after[0]
        count = check(
            lib.uffdb_resident(pagemap_fd, start, span.end, out, most, after),
            f"cannot read the page tables of {span}",
        )
        found.extend(HvaRange.of(out[i].start, out[i].len) for i in range(count))
        if after[0] <= start:
            break
    return found
