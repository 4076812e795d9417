# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that others write to, and that takes so much of the host's memory at most."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.marks import REAL_QEMU
from uffdballoon.host import bounded_file
from uffdballoon.host.bounded_file import open_bounded_file

pytestmark = REAL_QEMU  # as root, which mounts

_BYTES = 1 << 20


def test_a_file_takes_no_more_than_it_may_and_holes_make_room() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    fd, why = open_bounded_file("lines", _BYTES)
    assert why == ""
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o666
    with pytest.raises(OSError) as full:  # noqa: PT011 - its errno is looked at
        _fill(fd)
    assert full.value.errno == errno.ENOSPC
    assert os.fstat(fd).st_blocks * 512 <= _BYTES
    os.ftruncate(fd, 0)
    assert os.pwrite(fd, b"more", 2 * _BYTES) == 4
    os.close(fd)


def _fill(fd: int) -> None:
    while os.write(fd, bytes(1 << 16)):
        pass


def _refusing(_name: bytes, _size_bytes: int) -> int:
    return -errno.EPERM


def test_a_host_that_refuses_the_mount_has_a_memfd_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded_file, "lib", SimpleNamespace(uffdb_bounded_file_open=_refusing))
    fd, why = open_bounded_file("lines", _BYTES)
    assert why == "Operation not permitted"
    assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:lines (deleted)"  # noqa: PTH115
    os.close(fd)
