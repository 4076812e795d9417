# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/PID/numa_maps: on which NUMA nodes of the host a process's memory is."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uffdballoon.model.addresses import HvaRange

# As numa(7) has it: an address, a policy, and words such as N0=12 and kernelpagesize_kB=4.
_START = re.compile(r"([0-9a-f]{1,16}) ")
_NODE = re.compile(r" N([0-9]{1,5})=([0-9]{1,15})\b")
_PAGE_KIB = re.compile(r" kernelpagesize_kB=([0-9]{1,9})\b")
_COST_SHARE = 20


def parse_numa_maps(text: str, spans: Iterable[HvaRange]) -> dict[HvaRange, dict[int, int]]:
    """Add up bytes by host node for each of ``spans``; a line of another shape is passed over."""
    found: dict[HvaRange, Counter[int]] = {span: Counter() for span in spans}
    for line in text.split("\n"):
        start = _START.match(line)
        if start is None:
            continue
        hva = int(start[1], 16)
        span = next((span for span in found if span.start <= hva < span.end), None)
        if span is None:
            continue
        size = _PAGE_KIB.search(line)
        page_bytes = int(size[1]) << 10 if size else PAGE_BYTES
        for node, count in _NODE.findall(line):
            found[span][int(node)] += int(count) * page_bytes
    return {span: dict(sorted(counts.items())) for span, counts in found.items()}


class HostNodes:
    """Where RAM blocks lie on the host; the kernel walks all page tables to say so.

    So what it said is given again for twenty times as long as that took.
    """

    def __init__(self, pid: int, spans: Iterable[HvaRange]) -> None:
        self._path = Path(f"/proc/{pid}/numa_maps")
        self._spans = tuple(spans)
        self._found: dict[HvaRange, dict[int, int]] = {}
        self._due_s = 0.0

    def read(self) -> dict[HvaRange, dict[int, int]]:
        """Return bytes by host node for each RAM block; nothing where the kernel does not tell."""
        begun_s = time.monotonic()
        if begun_s < self._due_s:
            return self._found
        try:
            text = self._path.read_bytes().decode(errors="replace")
        except OSError:  # no CONFIG_NUMA, no permission, or the process has ended
            text = ""
        self._found = parse_numa_maps(text, self._spans)
        now_s = time.monotonic()
        self._due_s = now_s + (now_s - begun_s) * _COST_SHARE
        return self._found
