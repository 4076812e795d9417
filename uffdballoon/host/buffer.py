# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory at an address that raw system calls can be given."""

from __future__ import annotations

from uffdballoon._native import ffi


class Buffer:
    """Zeroed, writable memory of a fixed size; it lives as long as this object."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = ffi.new("char[]", size_bytes)
        self.address = int(ffi.cast("uintptr_t", self._memory))
        self.view = memoryview(ffi.buffer(self._memory, size_bytes))
