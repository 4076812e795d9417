# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that QEMU logged to until it was told of another: which of its files it is.

QEMU does not say. But it closes that one, in its RCU thread, 10 to 100 ms after it opened the
other (QEMU 7.2, util/log.c); its standard error it never closes.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from uffdballoon.target.remote_fds import FdNumbers

_STDERR = 2
_PATIENCE_S = 2.0
_LOOKS_S = 0.005


WrittenFile: TypeAlias = tuple[int, int, int]
"""The number of an fd of QEMU's, and device and inode of what it writes to."""


def written_files(numbers: FdNumbers) -> set[WrittenFile]:
    """Return what QEMU has open for writing alone; raise TargetGoneError."""
    found = set()
    for number, fd in numbers.written_to().items():
        found.add(_identity(number, fd))
        os.close(fd)
    return found


def _identity(number: int, fd: int) -> WrittenFile:
    status = os.fstat(fd)
    return number, status.st_dev, status.st_ino


class LeftLog:
    """Begin before QEMU is told of another; close it."""

    def __init__(self, numbers: FdNumbers, older: set[WrittenFile]) -> None:
        """Note what it might be, but none that is ``older``; raise TargetGoneError."""
        self._numbers = numbers
        self._candidates: dict[int, int] = {}
        for number, fd in numbers.written_to().items():
            if _identity(number, fd) in older:
                os.close(fd)
            else:
                self._candidates[number] = fd
        self._until = time.monotonic() + _PATIENCE_S

    def close(self) -> None:
        for fd in self._candidates.values():
            os.close(fd)
        self._candidates.clear()

    def take(self) -> int | None:
        """Return a duplicate of it, the caller's; None as long as it is not known."""
        for number, fd in self._candidates.items():
            if number != _STDERR and not self._numbers.of_file(fd, [number]):
                return os.dup(fd)
        if time.monotonic() < self._until:
            return None
        return self._numbers.duplicate(_STDERR)

    def wait(self) -> int | None:
        """Return a duplicate of it, the caller's, as soon as it is known; None: it had none."""
        while time.monotonic() < self._until:
            found = self.take()
            if found is not None:
                return found
            time.sleep(_LOOKS_S)
        return self.take()
