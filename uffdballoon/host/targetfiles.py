# SPDX-License-Identifier: GPL-2.0-or-later
"""Files as another process sees them: in its root, and from where it is."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from uffdballoon.errors import UnsupportedError

_MOST_BYTES = 1 << 20
_MOST_LINKS = 40  # the kernel's own limit, path_resolution(7)
_START_FIELD = 19  # proc_pid_stat(5): the 22nd field, the 20th behind the name
# A start time is cut off to ticks of 10 ms. A QEMU takes longer than that to come to its options.
_SLACK_NS = 10_000_000


def read_unchanged_file(pid: int, path: str, *, has_moved: bool) -> str:
    """Read a text file that a process was given at its start, by the path that it was given.

    ``has_moved``: it may have left the directory it was started in. Raises UnsupportedError
    when the file cannot be read, or has been changed since the process started.
    """
    if has_moved and not path.startswith("/"):
        raise _unreadable(pid, path, "its path begins where the process was started")
    try:
        place = _resolve(pid, path)
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 - by its fd
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
                raise _unreadable(pid, path, "it is no small regular file")
            # A file that took another's place has an old st_mtime, and a new st_ctime.
            if max(found.st_mtime_ns, found.st_ctime_ns) > _started_ns(pid) + _SLACK_NS:
                raise _unreadable(pid, path, "it was changed after the process started")
            return file.read(_MOST_BYTES).decode(errors="replace")
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _unreadable(pid, path, f"it cannot be read: {why}") from error


def is_there(pid: int, path: str) -> bool:
    """Tell whether a process sees a file at an absolute path; so it is when that cannot be told."""
    try:
        os.lstat(_resolve(pid, path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def root_of(pid: int) -> str:
    """Return the root directory of a process as it is seen from here; "/" when it cannot be told.

    Paths in its maps begin with it (proc_pid_root(5)).
    """
    try:
        return os.readlink(f"/proc/{pid}/root")  # noqa: PTH115 - a string, as the maps have it
    except OSError:
        return "/"


def _resolve(pid: int, path: str) -> str:
    """Follow the links of a path inside of the process's root, which the kernel would leave."""
    root = f"/proc/{pid}/root"
    if path.startswith("/"):
        base, at_root = root, True
    else:
        base, at_root = f"/proc/{pid}/cwd", False
    waiting = path.split("/")
    done: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if not done and not at_root:
                raise ValueError("its path leaves the directory the process was started in")
            done = done[:-1]
            continue
        here = "/".join([base, *done, part])
        if not Path(here).is_symlink():
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise ValueError("too many symbolic links")
        target = os.readlink(here)  # noqa: PTH115 - as a string, with its slashes
        if target.startswith("/"):
            base, at_root, done = root, True, []
        waiting = [*target.split("/"), *waiting]
    return "/".join([base, *done])


def _started_ns(pid: int) -> int:
    """Return when a process started, by the clock that files have their times from."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    ticks = int(fields[_START_FIELD])
    since_boot_ns = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + since_boot_ns


def _unreadable(pid: int, path: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{path} cannot be read as process {pid} read it",
        why=why,
        hint="give its monitor with --qmp PATH",
        pid=pid,
    )
