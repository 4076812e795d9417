# SPDX-License-Identifier: GPL-2.0-or-later
"""The target: one process, pinned, and what there is to know of it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import select
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import psutil

from uffdballoon.errors import (
    NoSuchTargetError,
    PermissionDeniedError,
    TargetBusyError,
    TargetGoneError,
    UffdballoonError,
)
from uffdballoon.host.privileges import Capability, with_lacking
from uffdballoon.target.confinement import Confinement, read_confinement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

# Debian, Fedora (qemu-kvm), Ubuntu's wrappers (kvm, and qemu-system-x86_64-spice's kvm-spice)
_VMM_NAME = re.compile(r"qemu-system-\w+(?:-\w+)*|qemu-kvm|kvm|kvm-spice|qemu")
# Its last field is the id in the innermost namespace, which is the process's own.
_NSPID = re.compile(r"^NSpid:.*?(\d+)$", re.MULTILINE)
_UFFD_LINK = "anon_inode:[userfaultfd]"
_PROC = Path("/proc")
_STAT_FLAGS = 6  # proc_pid_stat(5): the 9th field, the 7th behind the name
_STAT_START = 19  # the 22nd field
_MOMENT_MS = 200
_PF_EXITING = 0x4  # linux/sched.h


class Thread(NamedTuple):
    tid: int
    name: str


class Target:
    """A process pinned by its pidfd: a pid that is used again is never mistaken for it."""

    def __init__(self, pid: int, pidfd: int, process: psutil.Process) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._process = process
        self.exe = _quietly(process.exe) or ""
        self.cmdline = _cmdline_of(pid)

    @classmethod
    def open(cls, pid: int, *, any_process: bool = False) -> Self:
        """Pin process ``pid``; ``any_process`` takes one that is no VMM, too.

        Raises NoSuchTargetError.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, OverflowError, ValueError) as error:
            raise NoSuchTargetError(
                f"there is no process {pid}",
                why="no process has that pid",
                hint="`uffdballoon list` shows the VMs that can be attached to",
                pid=pid,
            ) from error
        except OSError as error:
            raise NoSuchTargetError(
                f"{pid} is no process",
                why=f"it cannot be pinned: {error.strerror} (a thread's id?)",
                hint="give the pid of the process, not the id of one of its threads",
                pid=pid,
                errno=error.errno,
            ) from error
        try:
            target = cls(pid, pidfd, psutil.Process(pid))
            target._refuse_unless_suitable(any_process=any_process)
        except psutil.NoSuchProcess as error:
            os.close(pidfd)
            raise TargetGoneError.of(pid) from error
        except BaseException:
            os.close(pidfd)
            raise
        return target

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def has_exited(self, within_ms: int = 0) -> bool:
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(within_ms))

    def is_ending(self) -> bool:
        """Tell whether it has ended, does in a moment, or its memory is going.

        A QEMU that ends in order takes its sockets away first; a large one is a while about it.
        """
        if self.has_exited(_MOMENT_MS):
            return True
        try:
            flags = self._path("stat").read_bytes().rpartition(b")")[2].split()[_STAT_FLAGS]
        except OSError:
            return True
        return bool(int(flags) & _PF_EXITING)

    @contextlib.contextmanager
    def naming_its_end(self) -> Iterator[None]:
        """Name the end of the target where what was done meanwhile failed for it."""
        try:
            yield
        except (UffdballoonError, OSError) as error:
            if isinstance(error, TargetGoneError) or not self.is_ending():
                raise
            raise TargetGoneError.of(self.pid) from error

    def threads(self) -> list[Thread]:
        """List the threads, the main one first and then by their birth.

        That is the order of /proc (fs/proc/base.c, first_tid and next_tid walk the list that
        fork appends to). One that ends meanwhile is left out.
        """
        threads = []
        with self._vanishing():
            for tid in [int(entry.name) for entry in self._path("task").iterdir()]:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    comm = self._path("task", str(tid), "comm").read_text(errors="replace")
                    threads.append(Thread(tid, comm.rstrip("\n")))
        return threads

    def tids(self) -> frozenset[int]:
        """Return the ids of all threads; raise TargetGoneError when there are none."""
        try:
            return frozenset(int(task.name) for task in Path(f"/proc/{self.pid}/task").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            raise TargetGoneError.of(self.pid) from None

    def started_ticks(self, tid: int) -> int:
        """Return when a thread was started, in clock ticks since boot."""
        with self._vanishing():
            return int(self._stat_fields(tid)[_STAT_START])

    def system_call(self, tid: int) -> int | None:
        """Return the number of the call that a thread sleeps in; None where it sleeps in none."""
        with self._vanishing():
            number = self._path("task", str(tid), "syscall").read_text().split(maxsplit=1)[0]
        return int(number) if number.isdecimal() else None  # "running", or -1: in none

    def _stat_fields(self, tid: int) -> list[bytes]:
        """Return the fields of a thread's stat behind its name, which may hold anything."""
        return self._path("task", str(tid), "stat").read_bytes().rpartition(b")")[2].split()

    def seen_from_here(self, own: Mapping[int, int]) -> dict[int, int]:
        """Change the keys from ids that QEMU has of its threads to those that we have of them.

        They differ when it lives in another pid namespace (NSpid, proc_pid_status(5)).
        """
        here = {}
        with self._vanishing():
            for task in self._path("task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    ids = _NSPID.search((task / "status").read_text(errors="replace"))
                    here[int(ids[1]) if ids else int(task.name)] = int(task.name)
        return {here[tid]: value for tid, value in own.items() if tid in here}

    def read_of_thread(self, tid: int, name: str) -> str:
        """Read a file of /proc/PID/task/TID; empty when that thread has ended.

        Raises PermissionDeniedError.
        """
        with self._vanishing():
            try:
                return self._path("task", str(tid), name).read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                return ""

    def fds(self) -> dict[int, str]:
        """Map the target's fds to what /proc says they are."""
        links = {}
        with self._vanishing():
            for entry in self._path("fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    links[int(entry.name)] = str(entry.readlink())
        return links

    def access_refused(self) -> list[str]:
        """Name what attaching takes of /proc/PID, and is refused to us."""
        refused = []
        for name in ("mem", "pagemap", "fd"):
            try:
                os.close(os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError as error:
                raise TargetGoneError.of(self.pid) from error
            except OSError:
                refused.append(f"/proc/{self.pid}/{name}")
        return refused

    def refuse_if_busy(self) -> None:
        """Raise TargetBusyError when the target uses a userfaultfd itself.

        One that was never initialised (features 0 in fdinfo) traps nothing.
        """
        for fd, link in self.fds().items():
            if link != _UFFD_LINK:
                continue
            with contextlib.suppress(FileNotFoundError):
                info = self._path("fdinfo", str(fd)).read_text()
                match = re.search(r"^API:\s+\w+:(\w+):", info, re.MULTILINE)
                if match and int(match[1], 16):
                    raise TargetBusyError(
                        f"process {self.pid} uses a userfaultfd already",
                        why="its memory is in a postcopy migration or a background snapshot, "
                        "or another tool holds it",
                        hint="wait until that has ended, and attach again",
                        pid=self.pid,
                    )

    def confinement(self) -> Confinement:
        with self._vanishing():
            return read_confinement(self.pid)

    def _refuse_unless_suitable(self, *, any_process: bool) -> None:
        if self._process.status() == psutil.STATUS_ZOMBIE or self.has_exited():
            raise TargetGoneError.of(self.pid)
        if not self.exe and not self.cmdline:
            try:
                self._path("exe").readlink()
            except PermissionError as error:
                raise PermissionDeniedError(
                    f"not allowed to look at process {self.pid}",
                    why="it belongs to another user",
                    hint=with_lacking(Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH),
                    pid=self.pid,
                ) from error
            except OSError:
                pass
        if not any_process and not is_vmm(self.exe, self.cmdline):
            name = Path(self.exe or (self.cmdline or ("?",))[0]).name
            raise NoSuchTargetError(
                f"process {self.pid} is no QEMU",
                why=f"it runs {name!r}",
                hint="`uffdballoon list` shows the VMs that can be attached to",
                pid=self.pid,
            )

    def _path(self, *parts: str) -> Path:
        return _PROC.joinpath(str(self.pid), *parts)

    @contextlib.contextmanager
    def _vanishing(self) -> Iterator[None]:
        """Name the errors of /proc: the target may end at any moment."""
        try:
            yield
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGoneError.of(self.pid) from error
        except PermissionError as error:
            raise PermissionDeniedError(
                f"not allowed to look at process {self.pid}",
                why="it belongs to another user",
                hint=with_lacking(Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH),
                pid=self.pid,
            ) from error


def is_vmm(exe: str, cmdline: tuple[str, ...]) -> bool:
    """Tell a QEMU by the name of its program.

    A deleted executable (upgraded under a running guest) ends in " (deleted)".
    """
    names = [Path(exe.removesuffix(" (deleted)")).name] if exe else []
    names += [Path(cmdline[0]).name] if cmdline else []
    return any(_VMM_NAME.fullmatch(name) for name in names)


def list_targets() -> list[Target]:
    """Pin every VM there is; the caller closes them."""
    targets = []
    for process in psutil.process_iter():
        if not is_vmm(_quietly(process.exe) or "", tuple(_quietly(process.cmdline) or ())):
            continue
        with contextlib.suppress(NoSuchTargetError, TargetGoneError, PermissionDeniedError):
            targets.append(Target.open(process.pid))
    return sorted(targets, key=lambda target: target.pid)


def _cmdline_of(pid: int) -> tuple[str, ...]:
    """Read a command line; empty where the process has ended or is not ours to ask about.

    To the byte, as psutil does not: it reads text, and takes a carriage return for a newline.
    """
    try:
        text = os.fsdecode((_PROC / str(pid) / "cmdline").read_bytes())
    except OSError:
        return ()
    return tuple(text.removesuffix("\0").split("\0")) if text else ()


def _quietly(ask: Callable[[], T]) -> T | None:
    """Ask psutil; None where the process has ended or is not ours to ask about."""
    try:
        return ask()
    except psutil.Error:
        return None
