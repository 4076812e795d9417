# SPDX-License-Identifier: GPL-2.0-or-later
"""Look at the target's seccomp filters before anything is injected into it.

An injected call meets the filters of the thread that it is injected into. What they answer is
computed here for each call that will be made, so that none is made that would end the target.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ptrace.binding import func as ptrace_requests
from ptrace.error import PtraceError

from uffdballoon.errors import (
    PermissionDeniedError,
    TargetGoneError,
)
from uffdballoon.host.buffer import Buffer
from uffdballoon.model.seccomp import (
    INSTRUCTION_BYTES,
    Action,
    Answer,
    BadProgramError,
    Call,
    answer_of,
    parse_program,
)
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injected_calls import (
    ALWAYS,
    OBTAINING,
    REPLACING_FD,
    RESTART,
    ZAP_AT_ONCE,
    ZAP_EACH,
)
from uffdballoon.target.ptrace import SeizedThread, seize
from uffdballoon.target.readiness import has_exited

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from uffdballoon.model.seccomp import Program

_GET_FILTER = 0x420C  # PTRACE_SECCOMP_GET_FILTER, linux/ptrace.h
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MAX_FILTERS = 1 << 15  # kernel: MAX_INSNS_PER_PATH, of at least one instruction each

Method = Literal["direct", "passed"]
METHODS: tuple[Method, ...] = ("direct", "passed")
ZAPS = "zap"
LOG = "log"
_WHAT = {
    "direct": "process {} gives no userfaultfd by `direct`",
    "passed": "process {} takes no userfaultfd by `passed`",
    ZAPS: "memory of process {} cannot be zapped",
    LOG: "the log of process {} could not be given back",
}


@dataclass(frozen=True, slots=True)
class Permits:
    """What may be injected; each ``refusals`` says why something may not.

    ``stopped_ns`` is for how long a thread was stopped to be looked at, 0 when none was.
    ``unread`` says why filters were not read where the operator answers for them.
    """

    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    zaps_at_once: bool = True
    filters: int = 0
    instructions: int = 0
    stopped_ns: int = 0
    unread: str = ""

    def may(self, method: Method) -> bool:
        return method not in self.refusals

    def refuse(self, what: str, pid: int) -> None:
        """Raise PermissionDeniedError when ``what``, a method or one of these, is not permitted."""
        refusal = self.refusals.get(what)
        if refusal is not None:
            raise refusal.error(_WHAT[what].format(pid), pid, self._hint(what))

    def refuse_unless_any(self, pid: int) -> None:
        """Raise PermissionDeniedError when the filters permit no way to a userfaultfd."""
        if all(method in self.refusals for method in METHODS):
            raise self.refusals["passed"].error(
                f"process {pid} may not be attached to",
                pid,
                self._hint(""),
                self.refusals["direct"],
            )

    def _hint(self, what: str) -> str:
        if what == "direct" and self.may("passed"):
            return "use `--uffd passed`"
        if what == "passed" and self.may("direct"):
            return "use `--uffd direct`"
        return (
            "let the filter of its service allow what `doctor --pid` names "
            "(SystemCallFilter= of systemd, -sandbox of QEMU), and start it anew"
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that is not permitted, and what the filters answer to it."""

    call: str
    answer: Answer

    def __str__(self) -> str:
        return f"its seccomp filter answers {self.call} with {self.answer}"

    def error(
        self, what: str, pid: int, hint: str, other: Refusal | None = None
    ) -> PermissionDeniedError:
        why = str(self)
        if other is not None and other != self:
            why = f"{other}, and {self.call} with {self.answer}"
        return PermissionDeniedError(what, why=why, hint=hint, pid=pid)


@dataclass(frozen=True, slots=True)
class _Filters:
    programs: tuple[Program, ...]
    stopped_ns: int


def look_at_filters(
    pid: int, pidfd: int, tids: Sequence[int] = (), *, trusted: bool = False
) -> Permits:
    """Say what the filters of these threads, by default the main one, let us inject.

    A thread with filters is stopped while they are read. Raises PermissionDeniedError
    where they cannot be read, unless they are ``trusted``, and for strict mode; and what
    `seize` and `SeizedThread.interrupt` raise.
    """
    read: list[_Filters] = []
    unread = ""
    for tid in tids or (pid,):
        mode = _mode(pid, tid)
        if mode == 0:
            continue
        if mode == 1:
            raise PermissionDeniedError(
                f"process {pid} may not be attached to",
                why="it is in strict seccomp mode, where any other call than read(2) and "
                "write(2) ends it",
                hint="start it without",
                pid=pid,
            )
        try:
            read.append(_on_a_thread_of_its_own(pid, pidfd, tid))
        except _UnreadableError as error:
            if not trusted:
                raise _unreadable(pid, error) from error
            unread = str(error)
    permits = permits_of([filters.programs for filters in read])
    distinct = {program for filters in read for program in filters.programs}
    return Permits(
        permits.refusals,
        permits.zaps_at_once,
        len(distinct),
        sum(map(len, distinct)),
        max((filters.stopped_ns for filters in read), default=0),
        unread,
    )


def permits_of(threads: Sequence[Sequence[Program]]) -> Permits:
    """Work out what the filters of all these threads together permit."""

    def refusal(*calls: Call) -> Refusal | None:
        for call in calls:
            for programs in threads:
                answer = _answer(programs, call)
                if not answer.allows:
                    return Refusal(call.name, answer)
        return None

    refusals: dict[str, Refusal] = {}
    for what, calls in (*OBTAINING.items(), (ZAPS, ZAP_EACH), (LOG, REPLACING_FD)):
        refused = refusal(*calls, *ALWAYS)
        if refused is not None:
            refusals[what] = refused
    return Permits(refusals, zaps_at_once=refusal(*ZAP_AT_ONCE) is None)


def _answer(programs: Sequence[Program], call: Call) -> Answer:
    try:
        return answer_of(programs, call)
    except BadProgramError:
        return Answer(Action.KILL_PROCESS)  # not a program that we know: never try it out


class _UnreadableError(Exception):
    def __init__(self, number: int | None) -> None:
        super().__init__(
            {
                errno.EACCES: "reading them takes CAP_SYS_ADMIN, and no seccomp filter on us",
                errno.EPERM: "reading them takes CAP_SYS_ADMIN, and no seccomp filter on us",
                errno.EINVAL: "this kernel cannot tell them (CONFIG_CHECKPOINT_RESTORE)",
                errno.EIO: "this kernel cannot tell them (CONFIG_CHECKPOINT_RESTORE)",
                errno.EMEDIUMTYPE: "one of them is of a kind that this kernel cannot tell",
            }.get(number or 0, os.strerror(number or 0))
        )
        self.number = number


def _unreadable(pid: int, error: _UnreadableError) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"process {pid} may not be attached to",
        why=f"it has seccomp filters which cannot be read, and might end it: {error}",
        hint="run as root; or `attach --trust-seccomp`, if you know that they allow "
        "userfaultfd(2), or refuse it with an error",
        pid=pid,
        errno=error.number,
    )


def _mode(pid: int, tid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/task/{tid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError.of(pid, "while it was being attached to") from error
    for line in status.split(b"\n"):
        if line.startswith(b"Seccomp:"):
            return int(line.split()[1])
    return 0  # a kernel without seccomp


def _on_a_thread_of_its_own(pid: int, pidfd: int, tid: int) -> _Filters:
    """Read with a tracer whose end lets the thread go, whatever happened."""
    outcome: list[_Filters] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(_read(pid, pidfd, tid))
        except BaseException as error:  # noqa: BLE001 - it is raised again by the caller's thread
            failure.append(error)

    tracer = threading.Thread(target=work, name="reader", daemon=True)
    tracer.start()
    tracer.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _read(pid: int, pidfd: int, tid: int) -> _Filters:
    buffer = Buffer(_MAX_INSTRUCTIONS * INSTRUCTION_BYTES)
    thread = seize(pid, tid)
    started_ns = time.monotonic_ns()
    try:
        thread.interrupt()
        if has_exited(pidfd):
            # The pid may be another process's by now.
            raise TargetGoneError.of(pid, "while it was being attached to")
        raw = _filters_of(thread, buffer)
        _keep_from_restarting(thread, raw)
    finally:
        thread.detach()
    stopped_ns = time.monotonic_ns() - started_ns
    try:
        return _Filters(tuple(parse_program(data) for data in raw), stopped_ns)
    except BadProgramError as error:
        raise _UnreadableError(errno.EMEDIUMTYPE) from error


def _filters_of(thread: SeizedThread, buffer: Buffer) -> list[bytes]:
    """Return the programs as they were installed, the oldest first (kernel: get_nth_filter)."""
    found: list[bytes] = []
    for index in range(_MAX_FILTERS):
        try:
            count = ptrace_requests.ptrace(_GET_FILTER, thread.tid, index, buffer.address)
        except PtraceError as error:
            if error.errno == errno.ENOENT:
                return found
            if error.errno == errno.ESRCH:
                raise TargetGoneError.of(thread.pid, "while it was being attached to") from error
            raise _UnreadableError(error.errno) from error
        found.append(bytes(buffer.view[: count * INSTRUCTION_BYTES]))
    return found


def _keep_from_restarting(thread: SeizedThread, raw: Sequence[bytes]) -> None:
    """Have a call begin anew which the kernel would go on with by a call that is filtered.

    A sleep that the stop has interrupted goes on by restart_syscall(2), and filters see that
    (kernel: arch_do_signal_or_restart).
    """
    registers = thread.registers()
    anew = arch.begun_anew(registers)
    if anew is None:
        return
    try:
        allowed = answer_of([parse_program(data) for data in raw], RESTART).allows
    except BadProgramError:
        allowed = False
    if not allowed:
        thread.set_registers(anew)
