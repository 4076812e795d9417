# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory cgroup around a process: what it is charged, and how it is squeezed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

from uffdballoon.errors import LabError

_ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """A cgroup of its own, of either version; removed once its processes have ended."""

    def __init__(self, name: str) -> None:
        self._is_v2 = _controls_memory(_ROOT)
        parent = _ROOT if self._is_v2 else _ROOT / "memory"
        self._path = parent / f"uffdballoon-{name}-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            if self._is_v2:
                with contextlib.suppress(OSError):
                    (self._path.parent / "cgroup.subtree_control").write_text("+memory")
            self._path.mkdir()
            self.charged_bytes()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._path.rmdir()
            raise LabError(
                "there is no memory cgroup to be had",
                why=str(error),
                hint="run as root, where the memory controller is mounted at /sys/fs/cgroup",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._path.rmdir()

    def add(self, pid: int) -> None:
        """Charge to it what the process faults in from now on."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def charged_bytes(self) -> int:
        name = "memory.current" if self._is_v2 else "memory.usage_in_bytes"
        return int((self._path / name).read_text())

    def ways(self) -> list[str]:
        """Name the ways to squeeze it, as its files are called."""
        if self._is_v2:
            return ["memory.reclaim", "memory.high"]
        return ["memory.limit_in_bytes", "memory.force_empty"]

    def squeeze(self, way: str, size_bytes: int) -> bool:
        """Ask for so much memory back in one way; False when the kernel gives up on it."""
        wanted = {
            "memory.reclaim": size_bytes,
            "memory.force_empty": 0,
        }.get(way, max(0, self.charged_bytes() - size_bytes))
        try:
            (self._path / way).write_text(str(wanted))
        except OSError:
            return False
        return True

    def relax(self) -> None:
        """Take a limit that was set away."""
        for name, none in (("memory.limit_in_bytes", "-1"), ("memory.high", "max")):
            with contextlib.suppress(OSError):
                if (self._path / name).exists():
                    (self._path / name).write_text(none)


def _controls_memory(root: Path) -> bool:
    try:
        return "memory" in (root / "cgroup.controllers").read_text().split()
    except OSError:
        return False
