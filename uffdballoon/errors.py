# SPDX-License-Identifier: GPL-2.0-or-later
"""Every refusal has a name, an exit code and three lines: what, why, what to do."""

from __future__ import annotations

import enum
import errno as errno_module
from typing import Self


class ExitCode(enum.IntEnum):
    """Exit codes of the command, documented in README."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PERMISSION = 3
    UNSUPPORTED = 4
    VIOLATION = 5


class UffdballoonError(Exception):
    """The root of all named errors.

    ``what`` failed, ``why``, the ``hint`` what to do about it; ``pid`` and
    ``errno`` where there are any.
    """

    exit_code = ExitCode.FAILED

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        hint: str = "",
        pid: int | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.pid = pid
        self.errno = errno

    def __str__(self) -> str:
        name = errno_module.errorcode.get(self.errno or 0)
        why = f"{self.why} ({name})" if self.why and name else self.why or name or ""
        return ". ".join(part for part in (self.what, why, self.hint) if part)


class UsageError(UffdballoonError):
    """What was asked for makes no sense as written."""

    exit_code = ExitCode.USAGE


class RangeError(UsageError):
    """A range is not guest RAM, crosses a hole, or holds no whole granule."""


class PermissionDeniedError(UffdballoonError):
    """The host refuses what is needed; the hint names what would allow it."""

    exit_code = ExitCode.PERMISSION


class UnsupportedError(UffdballoonError):
    """This kernel, architecture or VMM cannot do it."""

    exit_code = ExitCode.UNSUPPORTED


class NoSuchTargetError(UffdballoonError):
    """No process has that pid, or it is not a VMM."""


class TargetGoneError(UffdballoonError):
    """The target ended while it was worked on."""

    @classmethod
    def of(
        cls,
        pid: int,
        why: str = "while it was looked at",
        *,
        hint: str = "`uffdballoon list` shows what runs",
    ) -> Self:
        """Name the end of process ``pid``; ``why`` says when, or how it was found out."""
        return cls(f"process {pid} ended", why=why, hint=hint, pid=pid)


class TargetBusyError(UffdballoonError):
    """Somebody else holds what is needed: a tracer, a userfaultfd, a manager."""


class InjectionError(UffdballoonError):
    """A system call run in the target answered with an error."""


class QmpError(UffdballoonError):
    """QEMU's monitor cannot be reached or refused a command."""


class MonitorBusyError(QmpError):
    """Another client is connected to QEMU's monitor, which serves one at a time."""


class ControlError(UffdballoonError):
    """The manager's control socket cannot be reached or refused a request."""


class NotAttachedError(ControlError):
    """No manager of that process listens."""


class WindowBudgetError(UffdballoonError):
    """The kernel has no room for another window (vm.max_map_count)."""


class LabError(UffdballoonError):
    """A guest of the lab could not be started, or refused a command."""


class GuestSilentError(LabError):
    """A guest of the lab did not answer in time."""
