# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's RCU thread: the one thread of it that nobody waits for.

It runs the callbacks of call_rcu() (QEMU, util/rcu.c: call_rcu_thread) and sleeps
otherwise: in a futex until there are any, or for 10 ms until there are more. Of all
threads it is born first, since a constructor creates it before main() runs, and after
a fork again at once (rcu_init_child).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import TargetGoneError
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injector import IdleThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.target.process import Target, Thread

_NAME = "call_rcu"
_SLEEPS_IN = frozenset({arch.FUTEX, arch.NANOSLEEP, arch.CLOCK_NANOSLEEP})
_COMM_BYTES = 15  # TASK_COMM_LEN
_LOOKS = 20
_PAUSE_S = 0.01


class Found(NamedTuple):
    """The thread, or why there is none that is certain."""

    thread: IdleThread | None
    why: str = ""


def find_rcu_thread(target: Target) -> Found:
    """Find the thread by what it is, and see it asleep; nothing is stopped.

    Raises TargetGoneError or PermissionDeniedError.
    """
    threads = target.threads()
    # A thread's first name is that of the file that was run, which may be a link to the program.
    programs = (target.exe.removesuffix(" (deleted)"), *target.cmdline[:1])
    thread, why = _choose(threads, [Path(program).name for program in programs])
    if thread is None:
        return Found(None, why)
    if thread.name != _NAME and _is_younger(target, thread, threads):
        return Found(None, f"thread {thread.tid} is not its first-born one")
    for _ in range(_LOOKS):
        number = target.system_call(thread.tid)
        if number in _SLEEPS_IN:
            return Found(IdleThread(thread.tid, "RCU thread", _SLEEPS_IN))
        if number == arch.IOCTL:
            return Found(None, f"thread {thread.tid} seems to be a vCPU")
        time.sleep(_PAUSE_S)
    return Found(None, f"thread {thread.tid} does not sleep as an RCU thread does")


def _choose(threads: list[Thread], programs: Sequence[str]) -> tuple[Thread | None, str]:
    """Choose by name, else the first one born after the main one.

    It has the program's name even with debug-threads=on, which is read after its birth;
    after -daemonize it has its own.
    """
    named = [thread for thread in threads[1:] if thread.name == _NAME]
    if len(named) == 1:
        return named[0], ""
    if named:
        return None, f"{len(named)} of its threads are named {_NAME}"
    if len(threads) < 2:  # noqa: PLR2004 - the main one and another
        return None, "it has no thread but the main one"
    first = threads[1]
    if first.name not in (threads[0].name, *(program[:_COMM_BYTES] for program in programs)):
        return None, f"its first-born thread is named {first.name!r}"
    return first, ""


def _is_younger(target: Target, thread: Thread, threads: list[Thread]) -> bool:
    """Tell whether another was born before it; of ties, within 10 ms, the list's order is true."""
    born = target.started_ticks(thread.tid)
    for other in threads[2:]:
        try:
            if target.started_ticks(other.tid) < born:
                return True
        except TargetGoneError:  # that thread; of the process the next look tells
            continue
    return False
