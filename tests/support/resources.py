# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process holds, to be compared before and after."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.host.process import resident

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
        fds=sorted(links_of(pid).values()),
        threads=sorted(
            task.name
            for task in (proc / "task").iterdir()
            if _name_of(task) not in (None, "worker")
        ),
        stopped=bool(traced_threads(pid)) or "State:\tT" in status,
    )


def traced_threads(pid: int) -> list[int]:
    """List the threads that somebody traces, or that a tracer has stopped."""
    traced = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = (task / "status").read_text()
            if "TracerPid:\t0" not in status or "State:\tt" in status:
                traced.append(int(task.name))
    return traced


def links_of(pid: int) -> dict[int, str]:
    """Map a process's fds to what they are, but for those that it closes meanwhile."""
    links = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links[int(fd.name)] = str(fd.readlink())
    return links


def _name_of(task: Path) -> str | None:
    """Return the name of a thread, None when it ends meanwhile."""
    try:
        return (task / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def becomes(pid: int, before: Resources, patience_s: float = 10.0) -> bool:
    """Wait until a process holds what it held; QEMU closes its monitor's connection itself."""
    deadline = time.monotonic() + patience_s
    while resources_of(pid) != before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


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


def resident_bytes_within(pid: int, span: HvaRange) -> int:
    """Sum up the pages of a range that hold memory of their own (pagemap).

    smaps tells of whole mappings only, and the shared zero page counts in neither.
    """
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sum(run.size_bytes for run in resident(fd, span))
    finally:
        os.close(fd)


def userfaultfd_mappings(pid: int) -> int:
    """Count mappings that a userfaultfd is registered on (VmFlags um, uw or ui of smaps)."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    flags = (set(line.split()[1:]) for line in lines if line.startswith("VmFlags:"))
    return sum(bool(of & {"um", "uw", "ui"}) for of in flags)
