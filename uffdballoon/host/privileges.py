# SPDX-License-Identifier: GPL-2.0-or-later
"""What this process may do itself: its capabilities, and the sandbox it can enter."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.errors import PermissionDeniedError
from uffdballoon.host.errnos import check

if TYPE_CHECKING:
    from collections.abc import Collection


class Capability(enum.IntEnum):
    """Those that any part of this program can make use of (linux/capability.h)."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    KILL = 5
    IPC_LOCK = 14
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYS_NICE = 23
    PERFMON = 38
    BPF = 39
    CHECKPOINT_RESTORE = 40

    def __str__(self) -> str:
        return f"CAP_{self.name}"


# linux/capability.h, in the order of their numbers
_NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
ALL_CAPABILITIES = len(_NAMES)


def capability_names(mask: int) -> list[str]:
    """Name the capabilities of a set as /proc/PID/status has it; a newer one is its number."""
    return [
        f"CAP_{_NAMES[number] if number < len(_NAMES) else number}"
        for number in range(mask.bit_length())
        if mask >> number & 1
    ]


def refuse_unless_root(what: str) -> None:
    """Raise PermissionDeniedError for another user than root, before anything is done."""
    if os.geteuid():
        raise PermissionDeniedError(
            f"{what} needs root",
            why=f"it traces processes of its own, and this is uid {os.geteuid()}",
            hint="run it as root",
        )


def held_capabilities() -> frozenset[Capability]:
    """Return which of them the calling thread is permitted."""
    held = ffi.new("uint64_t *")
    check(lib.uffdb_held_capabilities(held), "cannot read the capabilities")
    return frozenset(capability for capability in Capability if held[0] >> capability & 1)


def with_lacking(*needed: Capability) -> str:
    """Write the hint that names those that are lacking, and not those that are held."""
    held = held_capabilities()
    lacking = " and ".join(str(capability) for capability in needed if capability not in held)
    return f"run as root, or with {lacking}" if lacking else "run as root"


def keep_capabilities(kept: Collection[Capability]) -> None:
    """Drop all capabilities but these, in every thread, for good."""
    mask = sum(1 << capability for capability in kept)
    check(lib.uffdb_keep_capabilities(mask), "cannot drop capabilities")


def enter_sandbox(
    target_pid: int, target_tid: int, target_pidfd: int, *, may_connect: bool
) -> None:
    """Put every thread under a list of allowed system calls, for good.

    Any other call fails with EPERM. What acts on a process works on the target
    alone, and tracing on its main thread and ``target_tid``; ``may_connect`` is to
    Unix sockets. Raises UnsupportedError where the kernel has no seccomp filters.
    """
    sandbox = ffi.new(
        "struct uffdb_sandbox *",
        {
            "target_pid": target_pid,
            "target_tid": target_tid,
            "target_pidfd": target_pidfd,
            "may_connect": may_connect,
        },
    )
    check(lib.uffdb_sandbox_enter(sandbox), "cannot enter the sandbox")


@dataclass(frozen=True, slots=True)
class Need:
    """What a capability is for where the target is another user's, and what does instead."""

    capability: Capability
    purpose: str
    instead: str


NEEDS = (
    Need(Capability.SYS_PTRACE, "attach, and zap private memory", "the target's own user"),
    Need(
        Capability.DAC_READ_SEARCH,
        "attach: /proc/PID/fd and pagemap, /dev/userfaultfd, tracefs",
        "the target's own user, with read access to /dev/userfaultfd and tracefs",
    ),
    Need(
        Capability.PERFMON,
        "the observer trace, with CAP_BPF or CAP_IPC_LOCK; and with it the contract told",
        "--contract cap",
    ),
    Need(Capability.BPF, "the observer trace by BPF", "perf, at more cost to the guest"),
    Need(
        Capability.IPC_LOCK,
        "the observer trace by perf: its rings are locked memory",
        "BPF, or a larger RLIMIT_MEMLOCK",
    ),
    Need(Capability.CHECKPOINT_RESTORE, "inflate where the guest's memory is shared", "none"),
    Need(Capability.SYS_NICE, "advise the target's memory from outside", "none"),
    Need(Capability.KILL, "the rung kill", "the target's own user, or another rung"),
    Need(
        Capability.DAC_OVERRIDE,
        "--qmp with a socket of another user's; inflate where a file of another user's, on tmpfs "
        "or hugetlbfs, is the guest's memory",
        "a socket, or a file, that we may write to",
    ),
    Need(
        Capability.SYS_ADMIN,
        "attach: the target's seccomp filters; the observer trace where tracefs is not mounted",
        "attach --trust-seccomp; mount -t tracefs tracefs /sys/kernel/tracing",
    ),
)
