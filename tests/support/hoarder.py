# SPDX-License-Identifier: GPL-2.0-or-later
"""Another process that takes huge pages of the pool, until it is closed."""

from __future__ import annotations

import subprocess
import sys

_HOARDER = """
import mmap, sys
MAP_HUGETLB = 0x40000
kept = mmap.mmap(-1, int(sys.argv[1]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
for at in range(0, len(kept), 2 << 20):
    kept[at] = 1
print("full", flush=True)
sys.stdin.read()
"""


class Hoarder:
    def __init__(self, size_bytes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOARDER, str(size_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "full\n"

    def close(self) -> None:
        with self._process:
            self._process.kill()
