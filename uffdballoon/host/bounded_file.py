# SPDX-License-Identifier: GPL-2.0-or-later
"""A file without a name that takes so much memory at most, however much is written to it.

It lies in a tmpfs of its own, which is mounted nowhere: the file alone keeps it.
"""

from __future__ import annotations

import os

from uffdballoon._native import lib
from uffdballoon.errors import UnsupportedError

_ANYBODY = 0o666  # its reader is who was given it: it has no name


def open_bounded_file(name: str, size_bytes: int) -> tuple[int, str]:
    """Open such a file, for reading and writing, that anybody may open who has an fd of it.

    Returns the fd, and why it is not bounded: a memfd, then; empty when it is. ``name`` is what
    /proc shows. Raises UnsupportedError.
    """
    why = ""
    fd = lib.uffdb_bounded_file_open(os.fsencode(name), size_bytes)
    if fd < 0:
        why = os.strerror(-fd)
        fd = _memfd(name)
    os.fchmod(fd, _ANYBODY)
    return fd, why


def _memfd(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            "cannot make a file in memory",
            why=str(error.strerror),
            hint="raise the limit of open files (ulimit -n)",
            errno=error.errno,
        ) from error
