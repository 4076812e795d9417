# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that stands in for a guest: one line in, one number out."""

from __future__ import annotations

import mmap
import os
import random
import sys
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from cffi import FFI

if TYPE_CHECKING:
    from collections.abc import Callable

_WORD_BYTES = 4
_SLICE_BYTES = 1 << 20
_MAP_FIXED = 0x10  # asm-generic/mman-common.h


def _map_as_qemu_does(fd: int, size_bytes: int) -> memoryview:
    """Map a file with a page behind it that nobody may touch, which Python's mmap() cannot.

    QEMU, util/mmap-alloc.c: qemu_ram_mmap(). By that page its RAM is known.
    """
    ffi = FFI()
    ffi.cdef("void *mmap(void *, size_t, int, int, int, long);")
    libc = ffi.dlopen(None)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    room = libc.mmap(ffi.NULL, size_bytes + mmap.PAGESIZE, 0, private, -1, 0)
    both = mmap.PROT_READ | mmap.PROT_WRITE
    at = libc.mmap(room, size_bytes, both, mmap.MAP_SHARED | _MAP_FIXED, fd, 0)
    return memoryview(ffi.buffer(at, size_bytes)).cast("B")


class Ram:
    def __init__(self, size_bytes: int) -> None:
        # Of a name, as that of a memory backend of QEMU's: what is anonymous may border on
        # other memory of the process, and then cannot be told from it.
        backing = os.memfd_create("memory-backend-memfd")
        os.ftruncate(backing, size_bytes)
        self._map = _map_as_qemu_does(backing, size_bytes)

    def ping(self) -> int:
        return 0

    def read(self, gpa: int) -> int:
        return int.from_bytes(self._map[gpa : gpa + _WORD_BYTES], "little")

    def write(self, gpa: int, value: int) -> int:
        self._map[gpa : gpa + _WORD_BYTES] = value.to_bytes(_WORD_BYTES, "little")
        return 0

    def fill(self, start: int, size_bytes: int, seed: int) -> int:
        noise = random.Random(seed)  # noqa: S311 - it has to be repeatable, not secret
        for gpa in range(start, start + size_bytes, _SLICE_BYTES):
            self._map[gpa : gpa + _SLICE_BYTES] = noise.randbytes(_SLICE_BYTES)
        return 0

    def checksum(self, start: int, size_bytes: int) -> int:
        total = 0
        for gpa in range(start, start + size_bytes, _SLICE_BYTES):
            total = zlib.crc32(self._map[gpa : gpa + _SLICE_BYTES], total)
        return total


def serve(ram: Ram) -> None:
    """Answer commands from a thread of a vCPU's name, until their sender is gone."""
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("CPU 0/TCG")
    commands: dict[str, Callable[..., int]] = {
        "ping": ram.ping,
        "read": ram.read,
        "write": ram.write,
        "fill": ram.fill,
        "checksum": ram.checksum,
    }
    for line in sys.stdin:
        name, *numbers = line.split()
        print(commands[name](*map(int, numbers)), flush=True)  # noqa: T201 - its answer


def main() -> None:
    Path("/proc/self/comm").write_text("qemu-system-x86")
    size_bytes = int(sys.argv[-1].removeprefix("size=").removesuffix("B"))
    vcpu = threading.Thread(target=serve, args=(Ram(size_bytes),))
    vcpu.start()
    vcpu.join()


if __name__ == "__main__":
    main()
