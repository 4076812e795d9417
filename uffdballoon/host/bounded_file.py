# SPDX-License-Identifier: GPL-2.0-or-later
"""A file without a name that takes so much memory at most, however much is written to it.

It lies in a tmpfs of its own, which a child mounts in a mount namespace that ends with it: the
file alone keeps it from then on. Nobody else sees the mount, and none is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from uffdballoon.errors import UnsupportedError

_PLACE = "/tmp"  # noqa: S108 - covered in the child's namespace alone
_PATIENCE_S = 30.0
_ANYBODY = 0o666  # its reader is who was given it: it has no name


def open_bounded_file(name: str, size_bytes: int) -> tuple[int, str]:
    """Open such a file, for reading and writing, that anybody may open who has an fd of it.

    Returns the fd, and why it is not bounded: a memfd, then; empty when it is. ``name`` is what
    /proc shows. Raises UnsupportedError.
    """
    why = ""
    try:
        fd = _in_own_tmpfs(name, size_bytes)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = str(error)
        fd = _memfd(name)
    os.fchmod(fd, _ANYBODY)
    return fd, why


def _in_own_tmpfs(name: str, size_bytes: int) -> int:
    command = [_program("unshare"), "--mount", "--propagation", "private", _program("sh"), "-ec"]
    script = (
        f'"$1" -t tmpfs -o "size=$2,mode=0700,nosuid,nodev,noexec" uffdballoon {_PLACE}\n'
        "echo mounted\nread -r _ || :\n"
    )
    with subprocess.Popen(
        [*command, script, "sh", _program("mount"), str(size_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # not to be interrupted in our place
    ) as child:
        assert child.stdout is not None
        try:
            if child.stdout.readline() != b"mounted\n":
                said = child.communicate(timeout=_PATIENCE_S)[1]
                raise ValueError(said.decode(errors="replace").strip() or "it cannot be mounted")
            path = Path(f"/proc/{child.pid}/root{_PLACE}/{name}")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _ANYBODY)
            path.unlink()
            return fd
        finally:
            with contextlib.suppress(BrokenPipeError):
                child.communicate(timeout=_PATIENCE_S)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ValueError(f"there is no {name}(1)")
    return found


def _memfd(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            "cannot make a file in memory",
            why=str(error.strerror),
            hint="raise the limit of open files (ulimit -n)",
            errno=error.errno,
        ) from error
