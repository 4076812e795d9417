# SPDX-License-Identifier: GPL-2.0-or-later
"""Which C library this is."""

from __future__ import annotations

from uffdballoon._native import ffi, lib


def describe_library() -> str:
    """Return the soname, which stands for the binary interface, and the version."""
    soname, version = (
        ffi.string(text).decode() for text in (lib.uffdb_soname(), lib.uffdb_version())
    )
    return f"{soname} ({version})"
