# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process holds, to be compared before and after."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from uffdballoon.model.addresses import HvaRange


class Resources(NamedTuple):
    fds: list[str]
    threads: list[str]
    stopped: bool


def resources_of(pid: int) -> Resources:
    """List fds by what they are, thread ids, and whether a tracer or a stop holds it.

    QEMU's own short-lived worker threads come and go: those are left out.
    """
    proc = Path(f"/proc/{pid}")
    status = (proc / "status").read_text()
    return Resources(
        fds=sorted(str(fd.readlink()) for fd in (proc / "fd").iterdir()),
        threads=sorted(
            task.name
            for task in (proc / "task").iterdir()
            if (task / "comm").read_text().strip() != "worker"
        ),
        stopped="TracerPid:\t0" not in status or "State:\tt" in status or "State:\tT" in status,
    )


def resident_bytes(pid: int, span: HvaRange) -> int:
    """Sum up what is resident of the mappings in a range (smaps).

    Of the guest's RAM, not of the process: QEMU's own memory comes and goes in megabytes.
    """
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = span.start <= int(head[1], 16) and int(head[2], 16) <= span.end
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def userfaultfd_mappings(pid: int) -> int:
    """Count mappings that a userfaultfd is registered on (VmFlags um, uw or ui of smaps)."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    flags = (set(line.split()[1:]) for line in lines if line.startswith("VmFlags:"))
    return sum(bool(of & {"um", "uw", "ui"}) for of in flags)
