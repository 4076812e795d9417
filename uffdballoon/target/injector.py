# SPDX-License-Identifier: GPL-2.0-or-later
"""Run system calls in the target, and leave no trace.

An `Injector` stops one thread, hands a `RemoteThread` to a function, and
restores the thread exactly, whatever happened. It borrows a thread that nobody
waits for, where the target has one, and else the main thread.

It traces from a thread of its own: to the kernel the tracer is that thread, so
that its end alone lets the target go, even where our own undoing could not run.

How the stopped thread survives a tracer that is killed in the middle is told
in the module of the architecture.
"""

from __future__ import annotations

import contextlib
import os
import platform
import struct
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from uffdballoon.errors import (
    InjectionError,
    PermissionDeniedError,
    TargetBusyError,
    TargetGoneError,
    UffdballoonError,
    UnsupportedError,
)
from uffdballoon.host.process import read_memory, write_memory
from uffdballoon.model.addresses import HvaRange
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.ptrace import SeizedThread, seize
from uffdballoon.target.readiness import refuse_unless_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ptrace.binding import ptrace_registers_t

    from uffdballoon.target.process import Target

T = TypeVar("T")

_LARGEST_TEXT_BYTES = 64 << 20
_FIELDS_WITH_PATH = 6  # of a line of maps, proc_pid_maps(5)
_STAT_PROCESSOR = 36  # proc_pid_stat(5): the 39th field, the 37th behind the name
_IDLE_ATTEMPTS = 8  # a borrowed thread that is awake is let go, and asked again a little later
_IDLE_PAUSE_S = 0.002
_WAY_BACK_BYTES = 4096  # more than what closes all that a call may hold


@dataclass(frozen=True, slots=True)
class Injected(Generic[T]):
    """What a function run in the target gave, and for how long a thread was stopped."""

    value: T
    stopped_ns: int
    by_main: bool = True


@dataclass(frozen=True, slots=True)
class IdleThread:
    """A thread that nobody waits for while it sleeps in one of these system calls."""

    tid: int
    name: str
    sleeps_in: frozenset[int]


class RemoteThread:
    """A stopped thread of the target that runs system calls for us."""

    def __init__(self, thread: SeizedThread, gadgets: arch.Gadgets) -> None:
        self._thread = thread
        self._gadgets = gadgets
        self._interrupted: ptrace_registers_t = thread.registers()
        self._signal_mask = 0
        self._way_back: arch.WayBack | None = None
        self._lost: TargetBusyError | None = None

    @property
    def pid(self) -> int:
        return self._thread.pid

    @property
    def is_main(self) -> bool:
        return self._thread.tid == self._thread.pid

    def sleeps_in(self) -> int:
        """Return the number of the system call that the stop interrupted; -1: in none."""
        return arch.interrupted_call(self._interrupted)

    def scratch(self, size_bytes: int) -> int:
        """Return the address of free stack for arguments, 64-byte aligned.

        Valid until the next call of `scratch`; ways back are laid above it.
        """
        return (self._prepared().bottom - 2 * _WAY_BACK_BYTES - size_bytes) & ~63

    def write(self, address: int, data: bytes) -> None:
        """Write to the target's memory; raise InjectionError where there is none."""
        try:
            written = write_memory(self.pid, address, data)
        except UffdballoonError as error:
            raise self._memory_error("write", address, error) from error
        if written != len(data):
            raise self._memory_error("write", address + written, None)

    def read(self, address: int, size_bytes: int) -> bytes:
        try:
            data = read_memory(self.pid, HvaRange.of(address, size_bytes))
        except UffdballoonError as error:
            raise self._memory_error("read", address, error) from error
        if len(data) != size_bytes:
            raise self._memory_error("read", address + len(data), None)
        return data

    def call(
        self, number: int, *args: int, held: Sequence[int] = (), creates_fd: bool = False
    ) -> int:
        """Run one system call; return its result, a negative errno included.

        ``held`` are fds of the target that the thread itself shall close if it
        is let go during this call; ``creates_fd`` says that the result is one
        more.
        """
        way_back = self._prepared()
        if held or creates_fd:
            stack = way_back.write_closing(self._free_place(), held, result=creates_fd)
        else:
            stack = way_back.plain()
        return self._run(stack, number, args, held)

    def call_receiving_fd(
        self, number: int, args_for_slot: Callable[[int], Sequence[int]], *, held: Sequence[int]
    ) -> tuple[int, int]:
        """Run a call that writes an fd number to memory: return (result, that fd or -1).

        ``args_for_slot`` is given the address of the slot for the number; the
        way back closes what is in it.
        """
        stack, slot = self._prepared().write_closing_slot(self._free_place(), held)
        result = self._run(stack, number, args_for_slot(slot), held)
        (fd,) = struct.unpack("<i", self.read(slot, 4))
        return result, fd

    def prepare(self) -> None:
        """Build the way back and take signals off the thread until `restore`.

        The order matters: the mask may only be changed once the thread, let go
        as it is, would restore it.
        """
        if not arch.is_64bit(self._interrupted):
            raise UnsupportedError(
                f"process {self.pid} runs 32-bit code",
                why="system calls are injected into 64-bit processes only",
                hint="use a 64-bit QEMU",
                pid=self.pid,
            )
        self._signal_mask = self._thread.signal_mask()
        way_back = arch.WayBack(
            self._interrupted,
            signal_mask=self._signal_mask,
            xstate=self._thread.xstate(),
            gadgets=self._gadgets,
            write=self.write,
        )
        self._on_its_way = way_back.plain()
        self._thread.set_registers(
            arch.parked_registers(self._interrupted, self._gadgets, way_back.plain())
        )
        self._way_back = way_back
        self._thread.set_signal_mask(arch.ALL_SIGNALS)

    def restore(self) -> None:
        """Put the thread back as it was; the mask first, for `prepare`'s reason."""
        if self._way_back is None or self._lost is not None:
            return
        self._thread.set_signal_mask(self._signal_mask)
        self._thread.set_registers(arch.resumable(self._interrupted))
        self._way_back = None

    def _free_place(self) -> int:
        """Return where the next way back may end: there are two places, one of them in use.

        Until its registers are set anew a thread that is let go takes the way back that it is on.
        """
        bottom = self._prepared().bottom
        in_first = bottom - _WAY_BACK_BYTES <= self._on_its_way < bottom
        return bottom - _WAY_BACK_BYTES if in_first else bottom

    def _prepared(self) -> arch.WayBack:
        assert self._way_back is not None
        return self._way_back

    def _run(self, stack: int, number: int, args: Sequence[int], held: Sequence[int]) -> int:
        if self._lost is not None:
            raise self._lost
        self._thread.set_registers(
            arch.call_registers(self._interrupted, self._gadgets, stack, number, args)
        )
        self._on_its_way = stack
        try:
            self._thread.run_to_syscall_stop()
            self._thread.run_to_syscall_stop()
        except TargetBusyError as error:
            self._lost = error
            # What it is just about to close is still open.
            self._send_back((*args[:1], *held) if number == arch.CLOSE else held)
            raise
        result = int(self._thread.registers().rax)
        return result - (1 << 64) if result >> 63 else result

    def _send_back(self, held: Sequence[int]) -> None:
        """Have a thread that does not get on, as in a frozen process, go back when it can.

        It closes what is held on its way. Where it is not even stopped it is on its way already.
        """
        if self._thread.is_stopped:
            stack = self._prepared().write_closing(self._free_place(), held)
            self._thread.set_registers(
                arch.parked_registers(self._interrupted, self._gadgets, stack)
            )

    def _memory_error(
        self, verb: str, address: int, error: UffdballoonError | None
    ) -> InjectionError:
        return InjectionError(
            f"cannot {verb} the stack of process {self.pid} at {address:#x}",
            why=error.why if error else "the mapping ends there",
            hint="attach again: its main thread may have been deep in a small stack",
            pid=self.pid,
            errno=error.errno if error else None,
        )


class Injector:
    """Runs system calls in one pinned target, for as long as somebody is attached.

    It holds what it found: the code to borrow, and the thread. `close` ends it;
    nothing of it is in the target between two runs.
    """

    def __init__(self, target: Target, idle: IdleThread | None = None) -> None:
        """Find what is needed; nothing is stopped. The main thread is used without ``idle``.

        Raises TargetGoneError, PermissionDeniedError or UnsupportedError.
        """
        machine = platform.machine()
        if machine != arch.MACHINE:
            raise UnsupportedError(
                f"cannot attach on {machine}",
                why=f"system calls can be injected on {arch.MACHINE} only so far",
                hint="another architecture is one more file in target/arch/",
                pid=target.pid,
            )
        _refuse_shadow_stack(target.pid, has_one=target.confinement().shadow_stack)
        self.target = target
        self.idle = idle
        refuse_unless_ready(target.pid, self.tids)
        self.main_stops = 0
        self._gadgets = _gadgets_of(target)
        self._tracer: _Tracer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._tracer is not None:
            self._tracer.end()
            self._tracer = None

    @property
    def pid(self) -> int:
        return self.target.pid

    @property
    def tid(self) -> int:
        """Whom it stops."""
        return self.idle.tid if self.idle is not None else self.pid

    @property
    def tids(self) -> tuple[int, ...]:
        """Whom it may stop: the main thread is stopped where the other one never sleeps."""
        return (self.pid,) if self.idle is None else (self.idle.tid, self.pid)

    @property
    def thread_name(self) -> str:
        """Whom it stops, in words for a person."""
        return self.idle.name if self.idle is not None else "main thread"

    def run(self, function: Callable[[RemoteThread], T]) -> Injected[T]:
        """Stop one thread, run ``function`` with it, restore it, let it go.

        The other threads, the vCPUs among them, are not stopped. Raises what
        ``function`` raises, and TargetBusyError, TargetGoneError or
        PermissionDeniedError when it never got that far.
        """
        if self._tracer is None or not self._tracer.is_alive():
            self._tracer = _Tracer()
        return self._tracer.do(lambda: self._run(function))

    def _run(self, function: Callable[[RemoteThread], T]) -> Injected[T]:
        if self.idle is not None:
            for attempt in range(_IDLE_ATTEMPTS):
                injected = self._run_in(self.idle.tid, function, self.idle.sleeps_in)
                if injected is not None:
                    return injected
                time.sleep(_IDLE_PAUSE_S * attempt)
        self.main_stops += 1
        injected = self._run_in(self.pid, function, frozenset())
        assert injected is not None
        return injected

    def _run_in(
        self, tid: int, function: Callable[[RemoteThread], T], sleeps_in: frozenset[int]
    ) -> Injected[T] | None:
        """Run it in thread ``tid``; None when that sleeps in none of these calls."""
        thread = seize(self.pid, tid)
        started_ns = time.monotonic_ns()
        try:
            thread.interrupt()
            if self.target.has_exited():
                # The pid may be another process's by now.
                raise TargetGoneError.of(self.pid, "before it was attached to")
            remote = RemoteThread(thread, self._gadgets)
            if sleeps_in and remote.sleeps_in() not in sleeps_in:
                return None
            with _beside(self.pid, tid):
                try:
                    remote.prepare()
                    value = function(remote)
                finally:
                    remote.restore()
        finally:
            thread.detach()
        return Injected(value, time.monotonic_ns() - started_ns, by_main=tid == self.pid)


class _Tracer:
    """A thread that does one thing at a time, and whose end lets go of what it traces."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracer", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def do(self, job: Callable[[], T]) -> T:
        """Do it there; raise what it raises. The thread ends with a job that failed."""
        outcome: Future[T] = Future()

        def work() -> None:
            try:
                outcome.set_result(job())
            except BaseException as error:
                outcome.set_exception(error)
                raise

        self._jobs.put(work)
        try:
            return outcome.result()
        except BaseException:
            # Where it was our wait that was interrupted (Ctrl-C) the job goes to its end.
            self._jobs.put(None)
            self._thread.join()
            raise

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            try:
                work()
            except BaseException:  # noqa: BLE001 - it is raised again by the caller's thread
                return  # what could not be let go is let go by this


@contextlib.contextmanager
def _beside(pid: int, tid: int) -> Iterator[None]:
    """Stay on the CPU of the stopped thread: who is woken there waits for no other CPU."""
    before = os.sched_getaffinity(0)
    try:
        stat = Path(f"/proc/{pid}/task/{tid}/stat").read_bytes()
        os.sched_setaffinity(0, {int(stat.rpartition(b")")[2].split()[_STAT_PROCESSOR])})
    except OSError:
        pass  # not one of ours: it is slower, no more
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


def _gadgets_of(target: Target) -> arch.Gadgets:
    """Find the code to borrow, libc's first; nothing is stopped meanwhile."""
    try:
        gadgets = arch.find_gadgets(_executable_texts(target.pid))
    except (PermissionError, PermissionDeniedError):
        seize(target.pid, target.pid).detach()  # names the reason better than open does
        raise
    if not gadgets.usable:
        raise UnsupportedError(
            f"process {target.pid} has no code to run a system call from",
            why="neither its libc nor any other file it maps holds `syscall; ret` and "
            "a signal return",
            hint="a dynamically linked QEMU on glibc or musl is needed",
            pid=target.pid,
        )
    return gadgets


def _executable_texts(pid: int) -> Iterator[tuple[int, bytes]]:
    spans = []
    try:
        with Path(f"/proc/{pid}/maps").open(errors="replace") as maps:
            for line in maps:
                fields = line.split(maxsplit=5)
                is_file = len(fields) == _FIELDS_WITH_PATH and fields[-1].startswith("/")
                if is_file and fields[1].startswith("r-x"):
                    start, end = (int(text, 16) for text in fields[0].split("-"))
                    spans.append(("/libc" not in fields[5], start, end))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError.of(pid, "before it was attached to") from error
    for _, start, end in sorted(spans):
        try:
            span = HvaRange.of(start, min(end - start, _LARGEST_TEXT_BYTES))
            yield start, read_memory(pid, span)
        except PermissionDeniedError:
            raise
        except UffdballoonError:
            continue  # unmapped since, or not readable: another may do


def _refuse_shadow_stack(pid: int, *, has_one: bool) -> None:
    """Refuse a target whose returns are checked by the CPU: the way back is made of returns."""
    if has_one:
        raise UnsupportedError(
            f"process {pid} has a user shadow stack",
            why="the CPU checks its returns, and injection relies on returns of its own",
            hint="start QEMU with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            pid=pid,
        )
