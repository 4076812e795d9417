# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host says of its memory and of a process, read from /proc."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Free:
    """Free memory of the host.

    What is freed goes to a list of its CPU first and may stay there; MemFree counts it only
    later (mm/page_alloc.c). Both together move at once, and by what was freed.
    """

    mem_free_bytes: int
    on_cpu_lists_bytes: int

    @classmethod
    def now(cls) -> Self:
        zones = Path("/proc/zoneinfo").read_text()
        pages = sum(map(int, re.findall(r"^\s+count:\s+(\d+)", zones, re.MULTILINE)))
        return cls(_kilobytes(Path("/proc/meminfo"), "MemFree"), pages * os.sysconf("SC_PAGESIZE"))

    @property
    def total_bytes(self) -> int:
        return self.mem_free_bytes + self.on_cpu_lists_bytes

    def __sub__(self, before: Free) -> Free:
        return Free(
            self.mem_free_bytes - before.mem_free_bytes,
            self.on_cpu_lists_bytes - before.on_cpu_lists_bytes,
        )


def resident_bytes(pid: int) -> int:
    """Read the exact figure: the one in /proc/PID/status may lag behind."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Rss")


def tracer_of(pid: int) -> int:
    """Return the pid of the tracer, 0 for none."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("TracerPid:")[1].split()[0])


def open_files(pid: int) -> list[str]:
    """List what the process has open, by name, sorted."""
    directory = Path(f"/proc/{pid}/fd")
    return sorted(str(fd.readlink()) for fd in directory.iterdir() if os.path.lexists(fd))


def _kilobytes(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return int(found[1]) * 1024
