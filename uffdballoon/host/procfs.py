# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/PID/maps: what is mapped where, and on what kind of file system."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import PermissionDeniedError, TargetGoneError
from uffdballoon.model.addresses import HvaRange
from uffdballoon.model.job import Turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from uffdballoon.model.job import Job

# As proc_pid_maps(5) has it. Of what a name may hold the kernel escapes the newline alone (and
# in mountinfo blanks and backslashes): lines end there, and at no other character.
_LINE = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<perms>[r-][w-][x-][ps]) "
    r"(?P<offset>[0-9a-f]+) (?P<dev>[0-9a-f]+:[0-9a-f]+) (?P<inode>[0-9]{1,20}) *(?P<path>.*)"
)
_TEXT_BYTES = 64 << 10
_LOCKED = re.compile(r"^VmLck:[ \t]*([0-9]{1,15}) kB$", re.MULTILINE)


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
    for line in text.split("\n"):
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


class MappingCounts(NamedTuple):
    """How many mappings a process has, and how many of them begin in certain ranges."""

    all: int
    within: int


def counting_mappings(pid: int, spans: Sequence[HvaRange]) -> Job[MappingCounts]:
    """Count the mappings of a process, and those that begin in ``spans``; raise as read_mappings().

    The kernel tells a page of text at a time, and there may be tens of thousands of lines.
    """
    turn = Turn()
    count = within = 0
    rest = b""
    with _naming_errors(pid), Path(f"/proc/{pid}/maps").open("rb", buffering=0) as file:
        while text := file.read(_TEXT_BYTES):
            *lines, rest = (rest + text).split(b"\n")
            count += len(lines)
            if spans:
                starts = [int(line.partition(b"-")[0], 16) for line in lines]
                within += sum(s.start <= start < s.end for start in starts for s in spans)
            if turn.is_over():
                yield 0.0
    return MappingCounts(count, within)


def stretches_of_size(
    mappings: Sequence[Mapping], size_bytes: int
) -> list[tuple[HvaRange, Mapping]]:
    """Find neighbouring pieces of the same writable memory that are of that size together.

    madvise() splits mappings, and what QEMU maps beside its RAM, such as a thread's stack,
    may lie right at it.
    """
    found = []
    for run in _runs(mappings):
        first = 0
        for last, piece in enumerate(run):
            while piece.span.end - run[first].span.start > size_bytes and first < last:
                first += 1
            span = HvaRange(run[first].span.start, piece.span.end)
            if span.size_bytes == size_bytes:
                found.append((span, run[first]))
    return found


def _runs(mappings: Sequence[Mapping]) -> list[list[Mapping]]:
    """Put neighbours of the same writable memory together."""
    runs: list[list[Mapping]] = []
    for mapping in mappings:
        if not mapping.perms.startswith("rw") or mapping.path.startswith("["):
            continue
        if runs and _go_on(runs[-1][-1], mapping):
            runs[-1].append(mapping)
        else:
            runs.append([mapping])
    return runs


def _go_on(before: Mapping, after: Mapping) -> bool:
    return before.span.end == after.span.start and (before.perms, before.path, before.inode) == (
        after.perms,
        after.path,
        after.inode,
    )


def file_system_of(pid: int, mapping: Mapping) -> str:
    """Name the file system that a mapping's file is on; empty when it has none or it is internal.

    memfd and SysV memory are on a mount that no mountinfo lists.
    """
    return parse_file_system(_read(pid, "mountinfo"), mapping)


def parse_file_system(text: str, mapping: Mapping) -> str:
    """Read the type of the file system that a mapping's device is, from mountinfo."""
    major, minor = (int(part, 16) for part in mapping.device.split(":"))
    wanted = f"{major}:{minor}"
    for line in text.split("\n"):
        fields = line.split()
        # proc_pid_mountinfo(5): the type follows a separator after the optional fields
        if wanted in fields[2:3] and "-" in fields[:-1]:
            return fields[fields.index("-") + 1]
    return ""


def locked_bytes_of(pid: int) -> int:
    """Return how much of its address space a process has locked (VmLck of proc_pid_status(5))."""
    return parse_locked_bytes(_read(pid, "status"))


def parse_locked_bytes(text: str) -> int:
    """Read VmLck from status; 0 where it does not say, as of a process that has ended."""
    found = _LOCKED.search(text)
    return int(found[1]) << 10 if found else 0


def _read(pid: int, name: str) -> str:
    with _naming_errors(pid):
        # Not as text, which would end lines at a name's carriage return, too.
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")


@contextlib.contextmanager
def _naming_errors(pid: int) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError.of(pid, "while its memory was looked at") from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"not allowed to look at the memory of process {pid}",
            why="it belongs to another user",
            hint="run as root, or with CAP_SYS_PTRACE",
            pid=pid,
        ) from error
