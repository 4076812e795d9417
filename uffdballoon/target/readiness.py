# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a thread can be stopped for a moment now, and why not.

A process that is frozen, or that a debugger holds, is refused before anything is done to it.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import TargetBusyError, UffdballoonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MOUNT_FIELDS = 5  # of mountinfo, up to the mount point; proc_pid_mountinfo(5)
_FROZEN: tuple[str, ...] = ("1",)  # of cgroup v2's cgroup.freeze
_FREEZING = ("FROZEN", "FREEZING")  # of cgroup v1's freezer.state


class _Mount(NamedTuple):
    """Where a hierarchy of cgroups is seen; ``root`` is the cgroup that the mount begins at."""

    root: str
    point: Path


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What /proc says of a thread: its state's letter, its tracer, where it sleeps."""

    letter: str
    tracer_pid: int
    sleeps_at: str


def refuse_unless_ready(pid: int, tids: Iterable[int] = ()) -> None:
    """Raise TargetBusyError for threads, by default the main one, that are frozen or traced.

    A tracer, and a cgroup, may have some threads of a process and not the others.
    """
    for tid in tids or (pid,):
        state = thread_state(pid, tid)
        if state.tracer_pid:
            raise traced_error(pid, state, tid)
        frozen = frozen_by(pid, tid)
        if frozen is not None:
            raise frozen_error(pid, frozen, tid)


def does_not_stop_error(pid: int, tid: int) -> UffdballoonError:
    """Name why a thread that was asked to stop, or to go on, did not: as TargetBusyError."""
    frozen = frozen_by(pid, tid)
    if frozen is not None:
        return frozen_error(pid, frozen, tid)
    state = thread_state(pid, tid)
    where = f", in {state.sleeps_at}" if state.sleeps_at else ""
    why = {
        "D": f"it sleeps uninterruptibly in the kernel (state D{where})",
        "R": "the host gives it no CPU time (state R)",
    }.get(state.letter, f"its state is {state.letter or 'unknown'}{where}")
    return TargetBusyError(
        f"thread {tid} of process {pid} does not stop",
        why=why,
        hint=f"see /proc/{pid}/task/{tid}/stack for what it waits for, and try again later",
        pid=pid,
    )


def traced_error(pid: int, state: ThreadState, tid: int) -> TargetBusyError:
    stopped = " and keeps it stopped" if state.letter == "t" else ""
    return TargetBusyError(
        f"{_named(pid, tid)} is traced already",
        why=f"its tracer is process {state.tracer_pid} (a debugger, strace?){stopped}, "
        "and there can be only one",
        hint=f"end or detach process {state.tracer_pid}, then try again",
        pid=pid,
    )


def frozen_error(pid: int, switch: Path, tid: int) -> TargetBusyError:
    thawed = "0" if switch.name == "cgroup.freeze" else "THAWED"
    return TargetBusyError(
        f"{_named(pid, tid)} is frozen",
        why=f"{switch} says so, and no thread in it can be borrowed meanwhile",
        hint=f"thaw it (echo {thawed} > {switch}), and try again",
        pid=pid,
    )


def _named(pid: int, tid: int) -> str:
    return f"process {pid}" if tid == pid else f"thread {tid} of process {pid}"


def thread_state(pid: int, tid: int) -> ThreadState:
    """Read what a thread is doing; one that is gone has no state."""
    task = Path(f"/proc/{pid}/task/{tid}")
    try:
        lines = (task / "status").read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return ThreadState("", 0, "")
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    try:
        sleeps_at = (task / "wchan").read_text()
    except OSError:
        sleeps_at = ""
    return ThreadState(
        letter=(fields.get("State") or [""])[0],
        tracer_pid=int((fields.get("TracerPid") or ["0"])[0]),
        sleeps_at="" if sleeps_at == "0" else sleeps_at,
    )


def has_exited(pidfd: int) -> bool:
    """Tell whether a pinned process has ended: its pid may be another's then."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def frozen_by(pid: int, tid: int) -> Path | None:
    """Return the file that freezes a thread, cgroup v2's or v1's; None: it is not frozen.

    A group is frozen with each of its ancestors (Documentation/admin-guide/cgroup-v2.rst,
    cgroup.freeze; cgroup-v1/freezer-subsystem.rst). A thread may be in a group of its own: of v1
    in any, of v2 in a threaded one. What is not visible here is not seen.
    """
    try:
        groups = Path(f"/proc/{pid}/task/{tid}/cgroup").read_bytes().decode(errors="replace")
        mounts = Path("/proc/self/mountinfo").read_bytes().decode(errors="replace")
    except OSError:
        return None
    for line in groups.split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            name, words = "cgroup.freeze", _FROZEN
            mount = _mount_of(mounts, "cgroup2", "")
        elif "freezer" in controllers.split(","):
            name, words = "freezer.state", _FREEZING
            mount = _mount_of(mounts, "cgroup", "freezer")
        else:
            continue
        if mount is None:
            continue
        for group in _group_and_ancestors(mount, path):
            if _says(group / name, words):
                return group / name
    return None


def _group_and_ancestors(mount: _Mount, path: str) -> Iterator[Path]:
    """Give the directories of a cgroup and of those above it, the topmost first."""
    inner = path.removeprefix(mount.root) if mount.root != "/" else path
    parts = [part for part in inner.split("/") if part]
    if ".." in parts:
        return  # it is outside of our cgroup namespace
    for depth in range(len(parts) + 1):
        yield mount.point.joinpath(*parts[:depth])


def _mount_of(mounts: str, kind: str, controller: str) -> _Mount | None:
    found = None
    for line in mounts.split("\n"):
        before, _, after = line.partition(" - ")
        fields, source = before.split(), after.split()
        if len(fields) < _MOUNT_FIELDS or source[:1] != [kind]:
            continue
        if not controller or controller in source[-1].split(","):
            found = _Mount(_plain(fields[3]), Path(_plain(fields[4])))
            if found.root == "/":
                break
    return found


def _plain(text: str) -> str:
    return text.replace("\\040", " ").replace("\\134", "\\")


def _says(file: Path, words: tuple[str, ...]) -> bool:
    try:
        return file.read_text().strip() in words
    except OSError:
        return False
