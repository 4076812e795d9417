# SPDX-License-Identifier: GPL-2.0-or-later
"""Tracepoints of the target's system calls, for the fault loop to follow.

Sources: Documentation/trace/events.rst, perf_event_open(2). The C library reads
the records where the kernel's `format` files put the fields on x86-64; this is
checked before anything is read.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from uffdballoon._native import ffi, lib
from uffdballoon.errors import PermissionDeniedError, UnsupportedError
from uffdballoon.host.errnos import check

if TYPE_CHECKING:
    from collections.abc import Sequence

_RING_BYTES = 16 << 20
"""Room for 350,000 records by BPF: longer than a manager is ever kept from reading."""
_MOUNT = "mount -t tracefs tracefs /sys/kernel/tracing"
_HEAD = {"common_type": (0, 2), "common_pid": (4, 4)}
TRACEPOINTS = {
    "sys_enter_madvise": {**_HEAD, "start": (16, 8), "len_in": (24, 8), "behavior": (32, 8)},
    "sys_enter_fallocate": {
        **_HEAD,
        "fd": (16, 8),
        "mode": (24, 8),
        "offset": (32, 8),
        "len": (40, 8),
    },
}
_FIELD = re.compile(r"field:([^;\n]*);\s*offset:(\d{1,9});\s*size:(\d{1,9});")


@dataclass(frozen=True, slots=True)
class TracedFile:
    """A part of a file of the target that is guest memory: ``fd`` is the target's number."""

    fd: int
    offset_bytes: int
    hva: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TracedRam:
    """A stretch of guest memory, as the guest addresses it and as the target does."""

    gpa: int
    hva: int
    size_bytes: int


class TracedBy(enum.IntEnum):
    """What writes the records, enum uffdb_trace_by; a log is Trace.of_log()'s."""

    ANY = lib.UFFDB_TRACE_BY_ANY
    BPF = lib.UFFDB_TRACE_BY_BPF
    PERF = lib.UFFDB_TRACE_BY_PERF


class Trace:
    """Records of what the target's threads, and those to come, discard and take back.

    To be given to a fault loop, which reads them; close it after that.
    """

    def __init__(
        self,
        pid: int,
        files: Sequence[TracedFile] = (),
        *,
        by: TracedBy = TracedBy.ANY,
        ring_bytes: int = _RING_BYTES,
        kept: Sequence[int] = (),
    ) -> None:
        """Start tracing ``pid``; ``ring_bytes`` of our memory are for what is not read yet.

        With ``kept``, go on with what another's fds() record; they are closed where that cannot be.

        Raises PermissionDeniedError, and UnsupportedError where the kernel has
        no tracepoints of system calls.
        """
        self.goes_on = False
        rows = ffi.new(
            "struct uffdb_traced_file[]",
            [(f.fd, 0, f.offset_bytes, f.hva, f.size_bytes) for f in files],
        )
        config = ffi.new(
            "struct uffdb_trace_config *",
            {"pid": pid, "by": by, "ring_bytes": ring_bytes, "files": rows, "nr_files": len(files)},
        )
        out = ffi.new("struct uffdb_trace **")
        if kept:
            self.goes_on = _go_on(config, kept, out)
        if not self.goes_on:
            _create(config, out)
        self.handle: Any = ffi.gc(out[0], lib.uffdb_trace_destroy)  # None once it is closed

    @classmethod
    def of_log(cls, pid: int, log_fd: int, ram: Sequence[TracedRam], *, actual_pages: int) -> Self:
        """Read what QEMU logs of its balloon device into a file that nobody else needs.

        ``log_fd`` is open for reading and writing, of a memfd or on a tmpfs, and may be closed
        after this; what was read of the file is taken out of it. ``actual_pages`` is what the
        balloon device counts, in pages of 4 KiB, when QEMU begins to log.

        Raises UffdballoonError for a file that no holes can be punched into.
        """
        rows = ffi.new("struct uffdb_traced_ram[]", [(r.gpa, r.hva, r.size_bytes) for r in ram])
        config = ffi.new(
            "struct uffdb_trace_config *",
            {
                "pid": pid,
                "by": lib.UFFDB_TRACE_BY_LOG,
                "log_fd": log_fd,
                "ram": rows,
                "nr_ram": len(ram),
                "actual_pages": actual_pages,
            },
        )
        out = ffi.new("struct uffdb_trace **")
        check(
            lib.uffdb_trace_create(config, out),
            f"cannot read what process {pid} logs of its balloon device",
            pid=pid,
        )
        trace = cls.__new__(cls)
        trace.goes_on = False
        trace.handle = ffi.gc(out[0], lib.uffdb_trace_destroy)
        return trace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End tracing; the fault loop must have been stopped before."""
        if self.handle is not None:
            ffi.release(self.handle)
            self.handle = None

    def fds(self) -> tuple[int, ...]:
        """Return the fds by which another goes on with it; none where it ends with us."""
        out = ffi.new("int[]", lib.UFFDB_TRACE_FDS)
        count = lib.uffdb_trace_fds(self.handle, out)
        return tuple(out[0:count])

    @property
    def opens_more(self) -> bool:
        """Whether each thread to come needs an event of its own, and the right to open it."""
        error = ffi.new("int *")
        return bool(ffi.string(lib.uffdb_trace_source(self.handle, error)) == b"perf")

    @property
    def source(self) -> str:
        """Say what writes the records, and why nothing better does."""
        error = ffi.new("int *")
        name: str = ffi.string(lib.uffdb_trace_source(self.handle, error)).decode()
        if not error[0]:
            return name
        why = errno.errorcode.get(-error[0], str(-error[0]))
        return f"{name}, at twice the cost to the guest, for BPF is refused ({why})"


def _go_on(config: Any, kept: Sequence[int], out: Any) -> bool:  # noqa: ANN401 - cdata
    if lib.uffdb_trace_go_on(config, list(kept), out) == 0:
        return True
    for fd in kept:
        os.close(fd)
    return False


def _create(config: Any, out: Any) -> None:  # noqa: ANN401 - cdata
    ids = _tracepoint_ids()
    config.enter_madvise = ids["sys_enter_madvise"]
    config.enter_fallocate = ids["sys_enter_fallocate"]
    try:
        check(
            lib.uffdb_trace_create(config, out),
            f"cannot trace process {config.pid} (by BPF or perf events)",
            pid=config.pid,
        )
    except PermissionDeniedError as refusal:
        refusal.hint = (
            "run as root, or with CAP_PERFMON and CAP_BPF, or CAP_PERFMON and CAP_IPC_LOCK"
        )
        raise


def _tracepoint_ids() -> dict[str, int]:
    root = lib.uffdb_tracefs_open()
    if root < 0:
        _refuse(-root)
    try:
        return {name: _id_of(root, name, fields) for name, fields in TRACEPOINTS.items()}
    finally:
        os.close(root)


def _refuse(number: int) -> None:
    why = "tracefs is not mounted, and could not be opened without"
    kind = PermissionDeniedError if number in (1, 13) else UnsupportedError
    raise kind(
        "cannot trace system calls",
        why=why,
        hint=f"as root: {_MOUNT}",
        errno=number,
    )


def _id_of(root: int, name: str, fields: dict[str, tuple[int, int]]) -> int:
    try:
        text = _read(root, f"events/syscalls/{name}/format")
    except OSError as error:
        kind = PermissionDeniedError if isinstance(error, PermissionError) else UnsupportedError
        raise kind(
            f"there is no tracepoint {name}",
            why="the kernel was built without CONFIG_FTRACE_SYSCALLS, or tracefs is closed to us",
            hint="run as root, or use another observer",
            errno=error.errno,
        ) from error
    return parse_format(text, name, fields)


def parse_format(text: str, name: str, fields: dict[str, tuple[int, int]]) -> int:
    """Read a tracepoint's id from its format; raise UnsupportedError for another shape."""
    number = re.search(r"^ID: *(\d{1,9})$", text, re.MULTILINE)
    # A declaration in C: its name is the last word, or what comes before the brackets.
    found = {
        m[1].partition("[")[0].split(" ")[-1].lstrip("*"): (int(m[2]), int(m[3]))
        for m in _FIELD.finditer(text)
    }
    if number is None or any(found.get(field) != place for field, place in fields.items()):
        raise UnsupportedError(
            f"the tracepoint {name} has another shape than is known here",
            why=f"its fields are {found}",
            hint="use another observer, and report this",
        )
    return int(number[1])


def _read(root: int, path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    with os.fdopen(fd, encoding="ascii") as file:
        return file.read()
