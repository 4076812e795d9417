# SPDX-License-Identifier: GPL-2.0-or-later
"""Confine a QEMU of the lab as libvirt, systemd or a container runtime would.

By programs of util-linux that wrap its command, so that nothing of ours is in
the process afterwards.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

PRIVATE_DIRECTORY = Path("/mnt")
"""With ``private_mounts`` a file system that only QEMU has is mounted there, open to all uids."""

_PATIENCE_S = 10.0

# The shell's own words; what differs are its arguments.
_JOIN = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
_MOUNT = 'mount -t tmpfs -o mode=1777 tmpfs "$0" && exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Each measure by itself; all of them together is ``EVERYTHING``.

    A QEMU in a pid namespace is process 1 there. Its ``uid`` is its gid, too.
    """

    uid: int | None = None
    no_capabilities: bool = False
    no_new_privileges: bool = False
    private_mounts: bool = False
    pid_namespace: bool = False
    network_namespace: bool = False
    user_namespace: bool = False
    memory_limit_bytes: int | None = None

    @property
    def forks(self) -> bool:
        """Whether QEMU is a child of the process that was started."""
        return self.pid_namespace

    def wrap(self, command: Sequence[str], cgroup: Path | None) -> list[str]:
        """Build the command that confines itself, and then becomes ``command``."""
        wrapped = [*self._identity(), *command]
        if self.private_mounts:
            wrapped = ["sh", "-c", _MOUNT, str(PRIVATE_DIRECTORY), *wrapped]
        if namespaces := self._namespaces():
            wrapped = ["unshare", *namespaces, "--", *wrapped]
        if cgroup is not None:
            wrapped = ["sh", "-c", _JOIN, str(cgroup), *wrapped]
        return wrapped

    def _namespaces(self) -> list[str]:
        wanted = {
            "--mount": self.private_mounts,
            "--net": self.network_namespace,
            "--pid": self.pid_namespace,
            "--fork": self.pid_namespace,
            "--mount-proc": self.pid_namespace and self.private_mounts,
            "--user": self.user_namespace,
            "--map-root-user": self.user_namespace,
        }
        return [option for option, wants in wanted.items() if wants]

    def _identity(self) -> list[str]:
        options = []
        if self.uid is not None:
            options += [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        if self.no_capabilities:
            options += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        if self.no_new_privileges:
            options.append("--no-new-privs")
        return ["setpriv", *options, "--"] if options else []


NOT_CONFINED = Confinement()
EVERYTHING = Confinement(
    uid=65534,
    no_capabilities=True,
    no_new_privileges=True,
    private_mounts=True,
    pid_namespace=True,
    network_namespace=True,
    memory_limit_bytes=512 << 20,
)


def make_memory_cgroup(name: str, limit_bytes: int) -> Path:
    """Make a cgroup with a limit; remove_cgroup() it when its processes were waited for.

    Raises LabError where this host has no memory controller for us.
    """
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),  # cgroup v1
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
        except OSError:
            group.rmdir()
            continue
        return group
    raise LabError(
        "no memory cgroup can be made",
        why="neither cgroup v1's memory controller nor v2's is there and ours to use",
        hint="run as root where /sys/fs/cgroup is writable",
    )


def remove_cgroup(group: Path) -> None:
    """Remove a cgroup; its processes were waited for, but leave it a moment later."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return
