# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host says of its memory and of a process, read from /proc."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def mem_free_bytes() -> int:
    return _kilobytes(Path("/proc/meminfo"), "MemFree")


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


def wait_for_growth(measure: Callable[[], int], before: int, at_least: int) -> int:
    """Return how much ``measure`` has grown, once it is ``at_least`` or it does not come.

    Memory that was given back reaches the counters with a delay of some milliseconds, and
    the rest of the machine moves them too.
    """
    deadline = time.monotonic() + 5
    while (grown := measure() - before) < at_least and time.monotonic() < deadline:
        time.sleep(0.01)
    return grown


def _kilobytes(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return int(found[1]) * 1024
