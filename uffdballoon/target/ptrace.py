# SPDX-License-Identifier: GPL-2.0-or-later
"""One seized thread: python-ptrace, plus the requests that it lacks.

python-ptrace attaches by PTRACE_ATTACH only, which sends a SIGSTOP that the
target and its parent can see. SEIZE and INTERRUPT leave no trace, and the
signal mask and the XSAVE area have no wrapper there at all.

Everything here must be called from the thread that seized: to the kernel the
tracer is a thread, not a process.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from typing import TYPE_CHECKING

from ptrace.binding import func as ptrace_requests
from ptrace.error import PtraceError

from uffdballoon.errors import (
    PermissionDeniedError,
    TargetGoneError,
    UffdballoonError,
    UnsupportedError,
)
from uffdballoon.host.buffer import Buffer
from uffdballoon.target.readiness import does_not_stop_error, thread_state, traced_error
from uffdballoon.target.security_modules import who_refuses

if TYPE_CHECKING:
    from ptrace.binding import ptrace_registers_t

# linux/ptrace.h
_GETREGSET = 0x4204
_SEIZE = 0x4206
_INTERRUPT = 0x4207
_GETSIGMASK = 0x420A
_SETSIGMASK = 0x420B
_O_TRACESYSGOOD = 1
_EVENT_STOP = 128
_NT_X86_XSTATE = 0x202  # linux/elf.h

_WALL = 0x40000000  # linux/wait.h: children that are threads, too
_SIGNAL_MASK_BYTES = 8
_XSTATE_MAX_BYTES = 64 << 10  # AMX has 11 KiB; the kernel says how much it wrote
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_STOP_DEADLINE_S = 2.0
_CALL_DEADLINE_S = 5.0  # beyond that, for a call that has begun
_NO_CPU_DEADLINE_S = 3.0  # beyond that, for a thread that would get on if it had a CPU
_SPIN_S = 0.01  # longer than a call takes that keeps to the budget of a stop
_LOOK_S = 0.0005


class SeizedThread:
    """A thread of the target that this thread traces.

    Made by `seize`; it runs until `interrupt`.
    """

    def __init__(self, pid: int, tid: int) -> None:
        self.pid = pid
        self.tid = tid
        self.is_stopped = False
        self._word = Buffer(_SIGNAL_MASK_BYTES)

    def interrupt(self) -> None:
        """Stop the thread where it is, without a signal.

        Raises TargetBusyError when it does not stop within 2 s: it then sleeps in the
        kernel where nothing but the end of its wait wakes it. One that could run and gets no CPU
        of a busy host is given 3 s more. It stays traced until the
        end of the calling thread, which alone lets go of a thread that is not stopped.
        """
        self._request(_INTERRUPT)
        status = self._wait_for_stop(_STOP_DEADLINE_S)
        if status >> 16 != _EVENT_STOP:
            # A signal arrived first: hand it over, the interrupt is still due.
            self._resume_until_event_stop(status)

    def run_to_syscall_stop(self) -> None:
        """Let the thread run to the next entry to or exit from a system call.

        Raises TargetBusyError when it does not come there in 2 s, as where it is
        frozen meanwhile: it was stopped again then, if `is_stopped`, before the call or in its
        middle. A call that goes on in the kernel is waited for, some seconds more.
        """
        while True:
            ptrace_syscall(self, 0)
            self.is_stopped = False
            status = self._poll_for_stop(_STOP_DEADLINE_S)
            if status is None:
                self._request(_INTERRUPT)
                status = self._wait_for_stop(_CALL_DEADLINE_S)
                if os.WSTOPSIG(status) != _SYSCALL_STOP:
                    raise does_not_stop_error(self.pid, self.tid)
            self.is_stopped = True
            if os.WSTOPSIG(status) == _SYSCALL_STOP:
                return
            # Else a SIGSTOP took hold of the whole process: it takes hold again at detach.

    def detach(self) -> None:
        """Let the thread go; a thread that is gone already is no error.

        One that is not stopped is let go by the end of the calling thread alone (kernel:
        exit_ptrace), whether it stops before that or after.
        """
        try:
            ptrace_requests.ptrace_detach(self.tid)
        except PtraceError as error:
            if error.errno != errno.ESRCH:
                raise self._named(error) from error

    def registers(self) -> ptrace_registers_t:
        try:
            return ptrace_requests.ptrace_getregs(self.tid)
        except PtraceError as error:
            raise self._named(error) from error

    def set_registers(self, registers: ptrace_registers_t) -> None:
        try:
            ptrace_requests.ptrace_setregs(self.tid, registers)
        except PtraceError as error:
            raise self._named(error) from error

    def signal_mask(self) -> int:
        """Read the blocked signals, one bit each.

        While a call such as ppoll has put another mask in place for its own
        duration, this is the mask that it will restore (kernel: ptrace_request,
        PTRACE_GETSIGMASK).
        """
        self._request(_GETSIGMASK, _SIGNAL_MASK_BYTES, self._word.address)
        return int.from_bytes(self._word.view, "little")

    def set_signal_mask(self, mask: int) -> None:
        self._word.view[:] = mask.to_bytes(_SIGNAL_MASK_BYTES, "little")
        self._request(_SETSIGMASK, _SIGNAL_MASK_BYTES, self._word.address)

    def xstate(self) -> bytes:
        """Read the XSAVE area, in the standard (not compacted) format."""
        area = Buffer(_XSTATE_MAX_BYTES)
        vector = Buffer(16)
        vector.view[:] = struct.pack("<QQ", area.address, _XSTATE_MAX_BYTES)
        self._request(_GETREGSET, _NT_X86_XSTATE, vector.address)
        _, size_bytes = struct.unpack("<QQ", vector.view)
        return bytes(area.view[:size_bytes])

    def _resume_until_event_stop(self, status: int) -> None:
        while status >> 16 != _EVENT_STOP:
            try:
                ptrace_requests.ptrace_cont(self.tid, os.WSTOPSIG(status))
            except PtraceError as error:
                raise self._named(error) from error
            status = self._wait_for_stop(_STOP_DEADLINE_S)

    def _wait_for_stop(self, within_s: float) -> int:
        """Wait for the thread's next stop; woken by the stop or by its end.

        Raises TargetBusyError after ``within_s``.
        """
        self.is_stopped = False
        status = self._poll_for_stop(within_s)
        if status is None:
            raise does_not_stop_error(self.pid, self.tid)
        self.is_stopped = True
        return status

    def _poll_for_stop(self, within_s: float) -> int | None:
        """Wait for a stop; None when there was none. waitpid(2) itself knows no deadline."""
        status = self._poll(within_s)
        if status is None and thread_state(self.pid, self.tid).letter == "R":
            status = self._poll(_NO_CPU_DEADLINE_S)
        return status

    def _poll(self, within_s: float) -> int | None:
        started = time.monotonic()
        while True:
            waited, status = self._wait(os.WNOHANG)
            if waited:
                self._check_alive(status)
                return status
            waited_s = time.monotonic() - started
            if waited_s > within_s:
                return None
            if waited_s < _SPIN_S:
                # The thread may need this very CPU to come to its stop. Where it does, this costs
                # next to nothing; a sleep would add its own length to most calls.
                os.sched_yield()
            else:
                time.sleep(_LOOK_S)

    def _wait(self, options: int) -> tuple[int, int]:
        try:
            return os.waitpid(self.tid, _WALL | options)
        except ChildProcessError as error:
            raise self._gone() from error

    def _check_alive(self, status: int) -> None:
        if not os.WIFSTOPPED(status):
            raise self._gone()

    def _request(self, request: int, argument: int = 0, data: int = 0) -> None:
        try:
            ptrace_requests.ptrace(request, self.tid, argument, data)
        except PtraceError as error:
            raise self._named(error) from error

    def _gone(self) -> TargetGoneError:
        return TargetGoneError.of(
            self.pid, "while it was being attached to", hint="nothing is left to undo"
        )

    def _named(self, error: PtraceError) -> UffdballoonError:
        if error.errno == errno.ESRCH:
            return self._gone()
        if error.errno == errno.ENODEV:
            return UnsupportedError(
                "this CPU keeps no XSAVE area",
                why="its floating-point state could not be restored",
                hint="a CPU or hypervisor with XSAVE is needed",
                pid=self.pid,
                errno=error.errno,
            )
        return UffdballoonError(
            f"ptrace failed on thread {self.tid} of process {self.pid}",
            why=str(error),
            hint="run `uffdballoon doctor --pid PID`",
            pid=self.pid,
            errno=error.errno,
        )


def ptrace_syscall(thread: SeizedThread, signum: int) -> None:
    """Resume ``thread`` up to its next system call stop."""
    try:
        ptrace_requests.ptrace_syscall(thread.tid, signum)
    except PtraceError as error:
        raise thread._named(error) from error  # noqa: SLF001 - same subject, same file


def seize(pid: int, tid: int) -> SeizedThread:
    """Become the tracer of one thread; it goes on running.

    Raises TargetBusyError when it has a tracer, PermissionDeniedError when the
    host refuses (ptrace(2), "Ptrace access mode checking").
    """
    try:
        ptrace_requests.ptrace(_SEIZE, tid, 0, _O_TRACESYSGOOD)
    except PtraceError as error:
        raise _seize_error(pid, tid, error.errno) from error
    return SeizedThread(pid, tid)


def _seize_error(pid: int, tid: int, number: int | None) -> UffdballoonError:
    if number == errno.ESRCH:
        return TargetGoneError.of(pid, f"its thread {tid} is gone")
    state = thread_state(pid, tid)
    if state.tracer_pid:
        return traced_error(pid, state, tid)
    likely = who_refuses(pid)
    return PermissionDeniedError(
        f"not allowed to trace process {pid}",
        why=likely.why,
        hint=likely.hint,
        pid=pid,
        errno=number,
    )
