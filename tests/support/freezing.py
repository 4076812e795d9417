# SPDX-License-Identifier: GPL-2.0-or-later
"""Cgroups that freeze the processes in them, of either version."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.lab.confinement import remove_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_S = 10.0


@contextlib.contextmanager
def _hierarchy(version: int, mount_point: Path) -> Iterator[Path]:
    """Give where cgroups of that version are; mounted for as long where they are nowhere."""
    kind, wanted = ("cgroup2", "") if version == 2 else ("cgroup", "freezer")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, mounted, options, *_ = line.split()
        if mounted == kind and (not wanted or wanted in options.split(",")):
            yield Path(point)
            return
    mount_point.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", wanted or "rw", "none", mount_point], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)


class FreezingGroup:
    """A cgroup within a cgroup; it is the outer one that is frozen."""

    def __init__(self, outer: Path, version: int) -> None:
        self._inner = outer / "inner"
        self._inner.mkdir(parents=True)
        self._home = outer.parent
        self._is_v2 = version == 2
        self.switch = outer / ("cgroup.freeze" if self._is_v2 else "freezer.state")

    def freeze(self, pid: int) -> None:
        """Put a process into it, and wait until it is frozen."""
        (self._inner / "cgroup.procs").write_text(str(pid))
        self._freeze()

    def freeze_thread(self, pid: int, tid: int) -> None:
        """Freeze one thread of a process, whose others go on."""
        if self._is_v2:
            (self._inner.parent / "cgroup.procs").write_text(str(pid))
            (self._inner / "cgroup.type").write_text("threaded")
            (self._inner / "cgroup.threads").write_text(str(tid))
            self.switch = self._inner / self.switch.name
        else:
            (self._inner / "tasks").write_text(str(tid))
        self._freeze()

    def _freeze(self) -> None:
        self.switch.write_text("1" if self._is_v2 else "FROZEN")
        deadline = time.monotonic() + _PATIENCE_S
        while not self._is_frozen():
            assert time.monotonic() < deadline, "it does not freeze"
            time.sleep(0.005)

    def thaw(self) -> None:
        self.switch.write_text("0" if self._is_v2 else "THAWED")

    def remove(self) -> None:
        """Thaw it, and put whoever is left in it into the group above."""
        self.thaw()
        threads = "cgroup.threads" if self._is_v2 else "tasks"
        for group in (self._inner, self._inner.parent):
            if self._is_v2 and (group / "cgroup.type").read_text().strip() == "threaded":
                continue  # its threads move with their process
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (self._home / "cgroup.procs").write_text(pid)
            for tid in (group / threads).read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (self._home / threads).write_text(tid)
        remove_cgroup(self._inner)
        remove_cgroup(self._inner.parent)

    def _is_frozen(self) -> bool:
        if self._is_v2:
            return "frozen 1" in (self._inner / "cgroup.events").read_text()
        return (self._inner / "freezer.state").read_text().strip() == "FROZEN"


@contextlib.contextmanager
def freezing_group(version: int, directory: Path) -> Iterator[FreezingGroup]:
    """Make such a cgroup; ``directory`` is where its hierarchy is mounted if it has to be."""
    with _hierarchy(version, directory / "cgroup") as root:
        group = FreezingGroup(root / f"uffdballoon-freezing-{os.getpid()}", version)
        try:
            yield group
        finally:
            group.remove()
