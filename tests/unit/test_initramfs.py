# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs is a cpio archive of the newc format."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.lab.initramfs import Initramfs

HEADER_BYTES = 110


def _entries(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Read name, mode and content of every entry, as the kernel does."""
    entries, at = [], 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i :][:8], 16) for i in range(13)]
        mode, size, name_bytes = fields[1], fields[6], fields[11]
        name = archive[at + HEADER_BYTES :][: name_bytes - 1].decode()
        at += -(-(HEADER_BYTES + name_bytes) // 4) * 4
        entries.append((name, mode, archive[at : at + size]))
        at += -(-size // 4) * 4
    return entries


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=70)))
def test_what_is_put_in_can_be_read_again(programs: dict[str, bytes]) -> None:
    archive = Initramfs()
    archive.add_directory("bin")
    for name, content in programs.items():
        archive.add_program(f"bin/{name}", content)
    assert archive.to_bytes() == archive.to_bytes()
    first, *files, last = _entries(archive.to_bytes())
    assert first == ("bin", stat.S_IFDIR | 0o755, b"")
    assert files == [(f"bin/{n}", stat.S_IFREG | 0o755, c) for n, c in programs.items()]
    assert last == ("TRAILER!!!", 0, b"")
