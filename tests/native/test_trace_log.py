# SPDX-License-Identifier: GPL-2.0-or-later
"""Python's part of a trace by QEMU's log; the C library's tests follow a balloon by it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uffdballoon.errors import UffdballoonError
from uffdballoon.host.trace import Trace, TracedRam

_RAM = [TracedRam(gpa=0, hva=0x7F0000000000, size_bytes=1 << 20)]


def _open_fds() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir()}


def test_a_log_is_read_without_privileges_and_let_go() -> None:
    log = os.memfd_create("log")
    before = _open_fds()
    with Trace.of_log(os.getpid(), log, _RAM, actual_pages=0) as trace:
        assert trace.source == "log"
        assert trace.fds() == ()
        assert not trace.opens_more
        assert not trace.goes_on
    assert _open_fds() == before
    os.close(log)


def test_a_file_that_cannot_be_read_and_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    before = _open_fds()
    fd = os.open(path, os.O_WRONLY)
    with pytest.raises(UffdballoonError, match="cannot read what process"):
        Trace.of_log(os.getpid(), fd, _RAM, actual_pages=0)
    os.close(fd)
    assert _open_fds() == before


def test_a_file_without_holes_is_refused() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    before = _open_fds()
    with pytest.raises(UffdballoonError, match="cannot read what process"):
        Trace.of_log(os.getpid(), fd, _RAM, actual_pages=0)
    assert _open_fds() == before
    os.close(fd)
