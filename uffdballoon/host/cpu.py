# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of this CPU that the kernel's interfaces take for known."""

from __future__ import annotations

from uffdballoon._native import lib


def xsave_area_bytes(features: int) -> int:
    """Return the size of a standard-format XSAVE area with these components; 0 if unknown."""
    return int(lib.uffdb_xsave_size(features))
