# SPDX-License-Identifier: GPL-2.0-or-later
"""Which security module it is, likely, that refuses to let us trace a process.

The kernel answers EPERM or EACCES and does not say who refused (ptrace(2), "Ptrace access mode
checking").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uffdballoon.host.privileges import Capability, held_capabilities
from uffdballoon.target.confinement import label_of

_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_ADMIN_ONLY, _NO_ATTACH = 2, 3  # Documentation/admin-guide/LSM/Yama.rst


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What can be seen of the modules; ``yama_scope`` is None without Yama.

    ``ours`` and ``theirs`` are the labels that a module gave to us and to the target.
    """

    yama_scope: int | None
    ours: str
    theirs: str
    may_trace: bool


@dataclass(frozen=True, slots=True)
class Likely:
    """Why it is refused, in words, and what to do."""

    why: str
    hint: str


def who_refuses(pid: int) -> Likely:
    """Say which module is likely to have refused to trace ``pid``."""
    try:
        scope = _YAMA.read_text().strip()
    except OSError:
        scope = ""
    return likely(
        Surroundings(
            yama_scope=int(scope) if scope.isdecimal() else None,
            ours=label_of("self"),
            theirs=label_of(str(pid)),
            may_trace=Capability.SYS_PTRACE in held_capabilities(),
        )
    )


def likely(seen: Surroundings) -> Likely:
    """Weigh what is seen, the surest first."""
    if seen.yama_scope == _NO_ATTACH:
        return Likely(
            "kernel.yama.ptrace_scope is 3: nobody may trace, root neither",
            "boot without that setting; it cannot be changed before",
        )
    if not seen.may_trace:
        scope = seen.yama_scope or 0
        yama = f", and kernel.yama.ptrace_scope is {scope}" if scope else ""
        return Likely(
            f"we lack CAP_SYS_PTRACE{yama}",
            "run as root, or with CAP_SYS_PTRACE"
            + (" and kernel.yama.ptrace_scope below 3" if scope >= _ADMIN_ONLY else ""),
        )
    confined = [label for label in (seen.ours, seen.theirs) if not _is_free(label)]
    if confined:
        # SELinux's labels are contexts, user:role:type:level; AppArmor's name a profile.
        module = "SELinux" if all(label.count(":") >= 2 for label in confined) else "AppArmor"  # noqa: PLR2004
        what = "label" if module == "SELinux" else "profile"
        return Likely(
            f"{module} is likely to refuse it (our {what} is {seen.ours or 'none'!s}, "
            f"its {what} is {seen.theirs or 'none'!s})",
            "see the kernel's log (ausearch -m avc, dmesg) for the denial, and run where the "
            "policy allows to trace QEMU",
        )
    return Likely(
        "ptrace is refused, by a security module or since it is in a user namespace of others",
        "see the kernel's log for the denial",
    )


def _is_free(label: str) -> bool:
    return label in ("", "unconfined", "kernel") or ":unconfined_t:" in label
