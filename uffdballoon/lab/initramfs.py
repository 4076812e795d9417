# SPDX-License-Identifier: GPL-2.0-or-later
"""Write an initramfs: a cpio archive in the newc format, the same bytes for the same input.

The format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import stat

_ALIGNMENT = 4


class Initramfs:
    """Files and directories, in the order in which they were added."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add_directory(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_program(self, name: str, content: bytes) -> None:
        self._add(name, stat.S_IFREG | 0o755, content)

    def to_bytes(self) -> bytes:
        """Return the archive, with its end."""
        return b"".join(self._parts) + _entry("TRAILER!!!", 0, 0, b"")

    def _add(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        self._parts.append(_entry(name, self._inode, mode, content))


def _entry(name: str, inode: int, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    uid = gid = time_s = device = checksum = 0
    links = 1
    fields = [inode, mode, uid, gid, links, time_s, len(content)]
    fields += [device, device, device, device, len(encoded), checksum]
    header = b"070701" + "".join(f"{value:08x}" for value in fields).encode()
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
