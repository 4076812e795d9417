# SPDX-License-Identifier: GPL-2.0-or-later
"""userfaultfd: features, registration and the ioctls that answer faults.

Source: Documentation/admin-guide/mm/userfaultfd.rst and linux/userfaultfd.h.
"""

from __future__ import annotations

import enum
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Self

from uffdballoon._native import ffi, lib
from uffdballoon.host.errnos import check, check_uffd

if TYPE_CHECKING:
    from uffdballoon.model.addresses import HvaRange

DEVICE = "/dev/userfaultfd"


class Feature(enum.IntFlag):
    """UFFD_FEATURE_*: what a kernel's userfaultfd can do."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_HUGETLBFS = 1 << 4
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    MINOR_HUGETLBFS = 1 << 9
    MINOR_SHMEM = 1 << 10
    EXACT_ADDRESS = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16


class RegisterMode(enum.IntFlag):
    """UFFDIO_REGISTER_MODE_*: which faults of a range are trapped."""

    MISSING = 1
    WP = 2
    MINOR = 4


class Userfaultfd:
    """A userfaultfd, ours or one taken from another process; it acts on its maker's memory.

    Closing the last copy unregisters everything and wakes every waiter.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.features = Feature(0)

    @classmethod
    def open(cls) -> Userfaultfd:
        """Make one of this process, by userfaultfd(2)."""
        return cls(check(lib.uffdb_uffd_open(-1), "cannot make a userfaultfd"))

    @classmethod
    def open_through_device(cls) -> Userfaultfd:
        """Make one of this process, through /dev/userfaultfd."""
        device = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = check(lib.uffdb_uffd_open(device), f"cannot make a userfaultfd by {DEVICE}")
        finally:
            os.close(device)
        return cls(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def api(self, features: Feature) -> Feature:
        """Enable features, once; return all that this kernel knows."""
        known = ffi.new("uint64_t *")
        check_uffd(
            lib.uffdb_uffd_api(self._fd, features, known), "userfaultfd: cannot enable features"
        )
        self.features = features
        return Feature(known[0])

    def learn_features(self) -> None:
        """See which features were enabled by who had it before (fdinfo)."""
        info = Path(f"/proc/self/fdinfo/{self._fd}").read_text()
        match = re.search(r"^API:\s+\w+:(\w+):", info, re.MULTILINE)
        enabled = int(match[1], 16) if match else 0
        self.features = Feature(enabled & sum(Feature))

    def register(self, span: HvaRange, modes: RegisterMode) -> None:
        check_uffd(
            lib.uffdb_uffd_register(self._fd, span.start, span.size_bytes, modes),
            f"cannot trap {span}",
        )

    def unregister(self, span: HvaRange) -> None:
        check_uffd(
            lib.uffdb_uffd_unregister(self._fd, span.start, span.size_bytes),
            f"cannot stop trapping {span}",
        )

    def zeropage(self, span: HvaRange, *, wake: bool = True) -> None:
        flags = 0 if wake else lib.UFFDB_DONTWAKE
        check_uffd(
            lib.uffdb_uffd_zeropage(self._fd, span.start, span.size_bytes, flags),
            f"cannot fill {span} with zeros",
        )

    def copy(
        self,
        span: HvaRange,
        data: bytes,
        *,
        wake: bool = True,
        write_protect: bool = False,
    ) -> None:
        flags = (0 if wake else lib.UFFDB_DONTWAKE) | (
            lib.UFFDB_WRITEPROTECT if write_protect else 0
        )
        check_uffd(
            lib.uffdb_uffd_copy(
                self._fd, span.start, ffi.from_buffer(data), span.size_bytes, flags
            ),
            f"cannot fill {span}",
        )

    def write_protect(self, span: HvaRange, *, on: bool) -> None:
        check_uffd(
            lib.uffdb_uffd_writeprotect(self._fd, span.start, span.size_bytes, on),
            f"cannot change the write protection of {span}",
        )

    def wake(self, span: HvaRange) -> None:
        check_uffd(
            lib.uffdb_uffd_wake(self._fd, span.start, span.size_bytes),
            f"cannot wake the waiters of {span}",
        )

    def poison(self, span: HvaRange) -> None:
        check_uffd(
            lib.uffdb_uffd_poison(self._fd, span.start, span.size_bytes, 0),
            f"cannot poison {span}",
        )

    def map_existing(self, span: HvaRange) -> None:
        """Map pages that the page cache has (UFFDIO_CONTINUE, for MINOR faults)."""
        check_uffd(
            lib.uffdb_uffd_continue(self._fd, span.start, span.size_bytes, 0),
            f"cannot map {span}",
        )


def query_features() -> Feature:
    """Ask what this kernel's userfaultfd can do, with a throw-away one of our own."""
    try:
        uffd = Userfaultfd.open_through_device()
    except OSError:
        uffd = Userfaultfd.open()
    with uffd:
        return uffd.api(Feature(0))
