# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's log: a file of ours for a while, and then what it was before.

QEMU opens the file that `logfile` names anew, and cuts it to nothing (util/log.c: fopen() for
"w"). So a log that it has written to can't be given back by its name. It is kept as the open
file that it is, and put in the place of ours by dup3(2), run in QEMU: nothing is cut, and what is
written goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError, UffdballoonError, UnsupportedError
from uffdballoon.host.process import duplicate_fd
from uffdballoon.target.remote_fds import (
    FdNumbers,
    fds_of_file,
    is_written_to,
    open_and_replace,
    replace_fd,
)
from uffdballoon.vmm.qemu.left_log import LeftLog, written_files
from uffdballoon.vmm.qemu.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uffdballoon.target.injector import Injector
    from uffdballoon.target.process import Target
    from uffdballoon.vmm.qemu.monitor import Monitor

NAME = "uffdballoon-log"
"""What /proc shows of a file of ours, so that one which a killed manager left is known."""
_STDERR = 2
_GIVEN = "uffdballoon-log"  # an fd in QEMU's monitor, for a moment
_DELETED = " (deleted)"


class DivertedLog:
    """QEMU's log, which goes to the file ``fd``, ours, until restore()."""

    def __init__(self, monitor: Monitor, injector: Injector, fd: int) -> None:
        """Note where it goes now, and have it go to ``fd``.

        Raises UnsupportedError where QEMU does not open it; the log is as it was then.
        """
        self._monitor = monitor
        self._injector = injector
        self._target = injector.target
        self._fd = fd
        self._places: set[int] = set()
        self._left: LeftLog | None = None
        self._former, self._path = _where_it_goes(self._target)
        self._numbers = FdNumbers(self._target)
        try:
            self._divert()
            self._older = written_files(self._numbers)
        except BaseException:
            with contextlib.suppress(UffdballoonError):
                self._places = fds_of_file(self._target, fd)
                self.restore()
            self.close()
            raise

    def restore(self) -> None:
        """Give the log back, unless somebody has set another meanwhile.

        What it takes of /proc is open already: a manager that has given its privileges up may do
        it. Raises QmpError, and what replace_fd() raises.
        """
        if self._left is not None:
            self._note_former(self._left.wait())
        self._put_former_in(self._numbers.of_file(self._fd, self._places))

    def is_ours(self) -> bool:
        """Tell whether it still goes to our file; raise TargetGoneError."""
        return bool(self._numbers.of_file(self._fd, self._places))

    def retake(self) -> None:
        """Have it go to our file again; where it goes now it goes again after restore().

        Which file that is is learned later. Raises QmpError, and UnsupportedError where QEMU
        does not open ours.
        """
        self._forget_left()
        self._left = LeftLog(self._numbers, self._older)
        said = self._have_opened(self._fd)
        self._places = self._numbers.of_file(self._fd, self._numbers.all())
        if not self._places:
            raise _not_opened(said, self._target.pid)
        self._older = written_files(self._numbers)

    def reopen(self) -> None:
        """Have QEMU open our file anew, which is told as if lines were lost; raise QmpError."""
        self._have_opened(self._fd)
        self._places = self._numbers.of_file(self._fd, self._numbers.all())

    def learn_former(self) -> bool:
        """Look which file QEMU left for ours; False as long as that is to be learned."""
        if self._left is not None:
            former = self._left.take()
            if former is None:
                return False
            self._note_former(former)
        return True

    def _note_former(self, former: int | None) -> None:
        self._forget_left()
        if former is not None:
            self._forget_former()
            self._former = former

    def _forget_left(self) -> None:
        if self._left is not None:
            self._left.close()
            self._left = None

    def close(self) -> None:
        """Let go of what was noted."""
        self._forget_left()
        self._forget_former()
        self._numbers.close()

    def _forget_former(self) -> None:
        if self._former >= 0:
            os.close(self._former)
            self._former = -1

    def _divert(self) -> None:
        said = self._have_opened(self._fd)
        self._places = fds_of_file(self._target, self._fd)
        if not self._places:
            self._set_back_what_closed()
            raise _not_opened(said, self._target.pid)

    def _have_opened(self, fd: int) -> str:
        """Have a file of ours be the log; return what QEMU has against it."""
        with _Given(self._monitor, self._numbers, fd) as number:
            return self._monitor.hmp(f"logfile /proc/self/fd/{number}").strip()

    def _set_back_what_closed(self) -> None:
        """QEMU closes one log before it opens the next: let it open nothing, and replace that."""
        before = self._target.fds()
        self._monitor.hmp(f"logfile {os.devnull}")
        opened = {
            number
            for number, link in self._target.fds().items()
            if link == os.devnull != before.get(number)
        }
        self._put_former_in(opened)

    def _put_former_in(self, places: set[int]) -> None:
        if not places:
            return
        if self._former < 0:
            for place in places:
                open_and_replace(self._injector, self._path, place, otherwise=_STDERR)
            return
        with _Given(self._monitor, self._numbers, self._former) as number:
            for place in places:
                replace_fd(self._injector, number, place)


def _not_opened(said: str, pid: int) -> UnsupportedError:
    return UnsupportedError(
        "observer monitor cannot be had",
        why="QEMU does not open the file that it is to log to: "
        f"{said or 'it says nothing'} (a security module, or no /proc where it lives?)",
        hint="use another observer",
        pid=pid,
    )


def was_left_diverted(target: Target) -> bool:
    """Tell whether the log goes to a file of a manager that was killed."""
    return any(map(_is_ours, target.fds().values()))


class _Given:
    """A file of ours that QEMU has for a while; a context that tells QEMU's number of it."""

    def __init__(self, monitor: Monitor, numbers: FdNumbers, fd: int) -> None:
        self._monitor = monitor
        self._numbers = numbers
        self._fd = fd

    def __enter__(self) -> int:
        before = self._numbers_of_it()
        self._monitor.execute_with_file("getfd", {"fdname": _GIVEN}, self._fd)
        now = self._numbers_of_it()
        # QEMU may have closed one meanwhile, in its RCU thread, and its number serves again.
        came = now - before or now
        if not came:
            self.__exit__()
            raise QmpError(
                "QEMU has not taken a file",
                why="it is not among its fds",
                hint="is its limit of open files reached?",
            )
        return max(came)

    def _numbers_of_it(self) -> set[int]:
        return self._numbers.of_file(self._fd, self._numbers.all())

    def __exit__(self, *_: object) -> None:
        self._monitor.execute("closefd", {"fdname": _GIVEN})


def _where_it_goes(target: Target) -> tuple[int, str]:
    """Return where the log goes: a duplicate of the open file, or -1 and the path of one.

    The path is of a log that a manager which was killed had QEMU close.
    """
    links = target.fds()
    path = log_option(target.cmdline)
    if path is not None:
        number = _fd_of_log(target, path, links)
        return (-1, path) if number is None else (_duplicate(target, number), path)
    if _STDERR not in links or _is_ours(links[_STDERR]):  # of one with -daemonize
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), ""
    return _duplicate(target, _STDERR), ""


def log_option(cmdline: tuple[str, ...]) -> str | None:
    """Return what -D has on a command line."""
    options = parse_options(cmdline[1:])
    paths = [option.text for option in options if option.name == "D" and option.text]
    return paths[-1] if paths else None


def is_link_of_log(link: str, path: str) -> bool:
    """Tell whether what /proc says of an fd may be the file of -D; %d in it is QEMU's pid."""
    shape = r"\d+".join(map(re.escape, path.removeprefix("./").split("%d")))
    begins = "" if path.startswith("/") else "(?:.*/)?"
    return re.fullmatch(begins + shape, link.removesuffix(_DELETED), re.DOTALL) is not None


def _fd_of_log(target: Target, path: str, links: Mapping[int, str]) -> int | None:
    root = Path(f"/proc/{target.pid}/{'root' if path.startswith('/') else 'cwd/'}{path}")
    for number, link in links.items():
        named = is_link_of_log(link, path) or _is_same(target, number, root)
        if named and not _is_ours(link) and is_written_to(target, number):
            return number
    return None


def _is_same(target: Target, number: int, path: Path) -> bool:
    try:
        return path.samefile(f"/proc/{target.pid}/fd/{number}")
    except OSError:
        return False


def _is_ours(link: str) -> bool:
    return link.removeprefix("/memfd:").removeprefix("/") == NAME + _DELETED


def _duplicate(target: Target, number: int) -> int:
    return duplicate_fd(target.pidfd, number, pid=target.pid)
