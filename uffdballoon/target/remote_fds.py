# SPDX-License-Identifier: GPL-2.0-or-later
"""Fds of the target: which is a certain file, and one put in another's place."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import InjectionError, TargetGoneError, UffdballoonError
from uffdballoon.host.process import duplicate_fd
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injected_calls import OPENING_LOG

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uffdballoon.target.injector import Injector, RemoteThread
    from uffdballoon.target.process import Target

_FLAGS_FIELD = "flags:"  # proc_pid_fdinfo(5), octal


def fds_of_file(target: Target, fd: int) -> set[int]:
    """Return the target's fds that are open on the file that our ``fd`` is open on."""
    wanted, place = os.fstat(fd), Path(f"/proc/{target.pid}/fd")
    return {number for number in target.fds() if _is_same(place / str(number), wanted)}


class FdNumbers:
    """The target's fds, for whoever may not look into its /proc/PID/fd any more; close it."""

    def __init__(self, target: Target) -> None:
        """Open it while that may be; raise OSError."""
        self._target = target
        self._directory = os.open(
            f"/proc/{target.pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )

    def close(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def all(self) -> set[int]:
        """Return the numbers; raise TargetGoneError."""
        try:
            return {int(name) for name in os.listdir(self._directory)}  # noqa: PTH208 - by its fd
        except OSError as error:
            raise TargetGoneError.of(self._target.pid) from error

    def of_file(self, fd: int, among: Iterable[int]) -> set[int]:
        """Return those among some that are open on the file that our ``fd`` is open on."""
        return {number for number in among if self._is_same(number, fd)}

    def written_to(self) -> dict[int, int]:
        """Return duplicates, the caller's to close, of those that are open for writing alone."""
        found: dict[int, int] = {}
        for number in self.all():
            theirs = self.duplicate(number)
            if theirs is None:
                continue
            if fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                found[number] = theirs
            else:
                os.close(theirs)
        return found

    def duplicate(self, number: int) -> int | None:
        """Return a duplicate, the caller's to close; None when it is closed meanwhile."""
        try:
            return duplicate_fd(self._target.pidfd, number, pid=self._target.pid)
        except UffdballoonError as error:
            if error.errno == errno.EBADF:
                return None
            raise

    def _is_same(self, number: int, fd: int) -> bool:
        theirs = self.duplicate(number)
        if theirs is None:
            return False
        try:
            return os.path.sameopenfile(theirs, fd)
        finally:
            os.close(theirs)


def is_written_to(target: Target, number: int) -> bool:
    """Tell whether an fd of the target is open for writing alone, as a log is."""
    try:
        info = Path(f"/proc/{target.pid}/fdinfo/{number}").read_text()
    except OSError:
        return False
    flags = next((line for line in info.split("\n") if line.startswith(_FLAGS_FIELD)), "")
    digits = flags.removeprefix(_FLAGS_FIELD).strip()
    return bool(digits) and int(digits, 8) & os.O_ACCMODE == os.O_WRONLY


def replace_fd(injector: Injector, source: int, place: int) -> None:
    """Have ``place`` be what ``source`` is, both fds of the target, in one step (dup3(2)).

    What writes to it meanwhile writes to the one or to the other. The target's filters must
    permit it. Raises InjectionError, and what Injector.run() raises.
    """

    def inject(remote: RemoteThread) -> int:
        return remote.call(arch.DUP3, source, place, 0)

    _refuse_unless_replaced(injector.run(inject).value, place, injector.pid)


def open_and_replace(injector: Injector, path: str, place: int, *, otherwise: int) -> None:
    """Have the target open a file, to append to, in the place of one of its fds.

    It opens it itself, by its own rights, where it lives. Where it may not, ``place`` is what its
    fd ``otherwise`` is. Raises as replace_fd().
    """
    name = os.fsencode(path) + b"\0"

    def inject(remote: RemoteThread) -> int:
        at = remote.scratch(len(name))
        remote.write(at, name)
        opened = remote.call(arch.OPENAT, *OPENING_LOG[:1], at, OPENING_LOG[1], creates_fd=True)
        if opened < 0:
            return otherwise if otherwise == place else remote.call(arch.DUP3, otherwise, place, 0)
        try:
            return remote.call(arch.DUP3, opened, place, 0, held=(opened,))
        finally:
            remote.call(arch.CLOSE, opened)

    _refuse_unless_replaced(injector.run(inject).value, place, injector.pid)


def _refuse_unless_replaced(result: int, place: int, pid: int) -> None:
    if result == place:
        return
    raise InjectionError(
        f"cannot replace fd {place} of process {pid}",
        why=os.strerror(-result) if result < 0 else f"dup3(2) answers {result}",
        hint="what it writes to its log is lost; `logfile PATH` of its monitor sets another",
        pid=pid,
        errno=-result if result < 0 else None,
    )


def _is_same(link: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(link.stat(), wanted)
    except OSError:
        return False  # closed meanwhile, or nothing that can be looked at
