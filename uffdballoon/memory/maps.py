# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/PID/maps: what is mapped where, and on what kind of file system."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from uffdballoon.errors import PermissionDeniedError, TargetGoneError
from uffdballoon.model.addresses import PAGE_BYTES, HvaRange

# As proc_pid_maps(5) has it.
_LINE = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<perms>[r-][w-][x-][ps]) "
    r"(?P<offset>[0-9a-f]+) (?P<dev>[0-9a-f]+:[0-9a-f]+) (?P<inode>\d+) *(?P<path>.*)"
)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of maps; ``path`` is empty for anonymous memory."""

    span: HvaRange
    perms: str
    offset_bytes: int
    device: str
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        return self.perms[3] == "s"


def parse_maps(text: str) -> list[Mapping]:
    """Read the lines of maps; a line of another shape is passed over."""
    mappings = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, end = int(match["start"], 16), int(match["end"], 16)
        mappings.append(
            Mapping(
                span=HvaRange.of(start, end - start),
                perms=match["perms"],
                offset_bytes=int(match["offset"], 16),
                device=match["dev"],
                inode=int(match["inode"]),
                path=match["path"],
            )
        )
    return mappings


def read_mappings(pid: int) -> list[Mapping]:
    """Read the mappings of a process; raise TargetGoneError or PermissionDeniedError."""
    return parse_maps(_read(pid, "maps"))


def page_bytes_of(pid: int, mapping: Mapping) -> int:
    """Return the size of the pages a mapping is made of (KernelPageSize in smaps)."""
    head = f"{mapping.span.start:08x}-{mapping.span.end:08x} "
    found = False
    for line in _read(pid, "smaps").splitlines():
        found = found or line.startswith(head)
        if found and line.startswith("KernelPageSize:"):
            return int(line.split()[1]) << 10
    return PAGE_BYTES


def file_system_of(pid: int, mapping: Mapping) -> str:
    """Name the file system that a mapping's file is on; empty when it has none or it is internal.

    memfd and SysV memory are on a mount that no mountinfo lists.
    """
    major, minor = (int(part, 16) for part in mapping.device.split(":"))
    wanted = f"{major}:{minor}"
    for line in _read(pid, "mountinfo").splitlines():
        fields = line.split()
        # proc_pid_mountinfo(5): the type follows a separator after the optional fields
        if wanted in fields[2:3] and "-" in fields:
            return fields[fields.index("-") + 1]
    return ""


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(
            f"process {pid} ended",
            why="while its memory was looked at",
            hint="`uffdballoon list` shows what runs",
            pid=pid,
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"not allowed to look at the memory of process {pid}",
            why="it belongs to another user",
            hint="run as root, or with CAP_SYS_PTRACE",
            pid=pid,
        ) from error
