# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process may not do, as /proc tells it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the target may not do, and whether it lives elsewhere (namespaces)."""

    uid: int
    capabilities: int
    no_new_privs: bool
    seccomp: bool
    tracer_pid: int
    shadow_stack: bool
    foreign_namespaces: tuple[str, ...]
    security_label: str = ""


def read_confinement(pid: int) -> Confinement:
    """Read how process ``pid`` is confined; raise OSError where that cannot be read."""
    lines = (_PROC / str(pid) / "status").read_bytes().decode(errors="replace").split("\n")
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    return Confinement(
        uid=int(fields["Uid"][1]),
        capabilities=int(fields["CapEff"][0], 16),
        no_new_privs=fields.get("NoNewPrivs") == ["1"],
        seccomp=fields.get("Seccomp", ["0"]) != ["0"],
        tracer_pid=int(fields["TracerPid"][0]),
        shadow_stack="shstk" in fields.get("x86_Thread_features", []),
        foreign_namespaces=_foreign_namespaces(pid),
        security_label=label_of(str(pid)),
    )


def label_of(process: str) -> str:
    """Return what a security module calls it; empty without one (proc_pid_attr(5)).

    ``process`` is a pid, or ``self``.
    """
    for name in ("apparmor/current", "current"):
        with contextlib.suppress(OSError):
            label = (_PROC / process / "attr" / name).read_bytes().decode(errors="replace")
            if label := label.strip("\n\0 "):
                return label
    return ""


def _foreign_namespaces(pid: int) -> tuple[str, ...]:
    foreign = []
    for name in ("mnt", "net", "pid", "user"):
        with contextlib.suppress(OSError):
            theirs = (_PROC / str(pid) / "ns" / name).readlink()
            if theirs != (_PROC / "self" / "ns" / name).readlink():
                foreign.append(name)
    return tuple(foreign)
