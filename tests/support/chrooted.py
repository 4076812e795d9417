# SPDX-License-Identifier: GPL-2.0-or-later
"""Have a QEMU run in a root directory and a mount namespace of its own."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The process stays the same one through all of it. Whoever is not root makes a user namespace.
_PROGRAM = """\
#!/bin/sh
[ "$(id -u)" = 0 ] || user='--user --map-root-user'
exec unshare $user --mount -- sh -c '
root=$0
{mounts}
exec chroot "$root" qemu-system-x86_64 "$@"' {root} "$@"
"""
_SHARED = ("dev", "proc", "sys", "tmp")


def write_chrooted_qemu(program: Path, root: Path, *, ours: bool = False) -> Path:
    """Write a program that runs the QEMU of a root directory, with our /dev, /proc, /sys and /tmp.

    ``ours``: the directory is empty, and all of our own files are shown there.
    """
    mounts = [f'mount --rbind /{name} "$root/{name}" || exit' for name in _SHARED]
    if ours:
        mounts = ['mount --rbind / "$root" || exit']
    text = _PROGRAM.format(mounts="\n".join(mounts), root=shlex.quote(str(root)))
    program.write_text(text)
    program.chmod(0o755)
    return program
