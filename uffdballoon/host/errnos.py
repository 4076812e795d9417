# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the C library's -errno becomes a named error, once."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from uffdballoon.errors import (
    PermissionDeniedError,
    RangeError,
    TargetBusyError,
    TargetGoneError,
    UffdballoonError,
    UnsupportedError,
    WindowBudgetError,
)


class _Meaning(NamedTuple):
    error: type[UffdballoonError]
    why: str
    hint: str


_GENERAL = {
    errno.EPERM: _Meaning(
        PermissionDeniedError, "the host refuses it", "run as root, or with CAP_SYS_PTRACE"
    ),
    errno.EACCES: _Meaning(
        PermissionDeniedError, "the host refuses it", "run as root, or with CAP_SYS_PTRACE"
    ),
    errno.ENOSYS: _Meaning(
        UnsupportedError,
        "this kernel does not have it",
        "`uffdballoon doctor` says what is lacking",
    ),
    errno.ESRCH: _Meaning(
        TargetGoneError, "the target ended", "`uffdballoon list` shows what runs"
    ),
    errno.EBUSY: _Meaning(
        TargetBusyError,
        "another userfaultfd holds this memory (a migration or a background snapshot?)",
        "wait until it has ended, or end it, and attach again",
    ),
}
_UFFD = {
    **_GENERAL,
    errno.ENOMEM: _Meaning(
        WindowBudgetError,
        "the target has no room for more mappings",
        "raise vm.max_map_count, or inflate in larger pieces",
    ),
    errno.ENOENT: _Meaning(
        RangeError, "it is not in the target's RAM blocks", "`uffdballoon inspect PID` lists them"
    ),
    errno.EINVAL: _Meaning(
        UnsupportedError,
        "this kernel cannot trap this kind of memory",
        "`uffdballoon doctor` says what is lacking",
    ),
}


def check(result: int, what: str, *, pid: int | None = None) -> int:
    """Return ``result``, or raise the named error that a negative one stands for."""
    return _check(result, what, _GENERAL, pid)


def check_uffd(result: int, what: str, *, pid: int | None = None) -> int:
    """Do as `check`, for calls on a userfaultfd, where ENOMEM and others mean more."""
    return _check(result, what, _UFFD, pid)


def _check(result: int, what: str, meanings: dict[int, _Meaning], pid: int | None) -> int:
    if result >= 0:
        return result
    number = -result
    meaning = meanings.get(number)
    if meaning is None:
        raise UffdballoonError(what, why=os.strerror(number), pid=pid, errno=number)
    raise meaning.error(what, why=meaning.why, hint=meaning.hint, pid=pid, errno=number)
