# SPDX-License-Identifier: GPL-2.0-or-later
"""What memory the host has left, and what a process holds, as the kernel says it."""

from __future__ import annotations

import os
import re
from pathlib import Path

_KIB = 1024


def free_bytes() -> int:
    """Return MemFree with the free lists of the CPUs, where what is freed goes first."""
    zones = Path("/proc/zoneinfo").read_text()
    on_lists = sum(map(int, re.findall(r"^\s+count:\s+(\d+)", zones, re.MULTILINE)))
    return _field("/proc/meminfo", "MemFree") + on_lists * os.sysconf("SC_PAGESIZE")


def resident_bytes(pid: int) -> int:
    """Return Rss; of a huge page it counts the part that is mapped."""
    return _field(f"/proc/{pid}/smaps_rollup", "Rss")


def huge_bytes(pid: int) -> int:
    """Return what is mapped by anonymous huge pages."""
    return _field(f"/proc/{pid}/smaps_rollup", "AnonHugePages")


def _field(path: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    return int(found[1]) * _KIB if found else 0
