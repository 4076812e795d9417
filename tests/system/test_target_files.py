# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that another process was given is read as it read it, or not at all."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from uffdballoon.errors import UnsupportedError
from uffdballoon.host.targetfiles import read_unchanged_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def _sleeper(directory: Path) -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], cwd=directory) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def _why(pid: int, path: str, *, has_moved: bool = False) -> str:
    with pytest.raises(UnsupportedError) as refused:
        read_unchanged_file(pid, path, has_moved=has_moved)
    return refused.value.why


def test_a_path_begins_where_the_process_was_started(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("here")
    (tmp_path / "link").symlink_to("deep/../deep/a")
    (tmp_path / "outside").symlink_to("../a")
    with _sleeper(tmp_path) as pid:
        assert read_unchanged_file(pid, "./deep/a", has_moved=False) == "here"
        assert read_unchanged_file(pid, "link", has_moved=False) == "here"
        assert read_unchanged_file(pid, f"{tmp_path}/link", has_moved=True) == "here"
        assert "leaves" in _why(pid, "outside")
        assert "begins where" in _why(pid, "deep/a", has_moved=True)


def test_what_is_no_file_or_has_changed_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a").write_text("before")
    with _sleeper(tmp_path) as pid:
        assert "regular" in _why(pid, "fifo")
        assert "links" in _why(pid, "loop")
        assert "cannot be read" in _why(pid, "gone")
        why = ""
        while not why:  # a start is known to 10 ms
            (tmp_path / "new").write_text("another")
            os.utime(tmp_path / "new", (0, 0))
            (tmp_path / "new").rename(tmp_path / "a")
            with contextlib.suppress(pytest.fail.Exception):
                why = _why(pid, "a")
        assert "changed after" in why
