# SPDX-License-Identifier: GPL-2.0-or-later
"""Which thread is QEMU's RCU thread, of threads that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from uffdballoon.errors import TargetGoneError
from uffdballoon.target.arch.x86_64 import CLOCK_NANOSLEEP, FUTEX, IOCTL, NANOSLEEP
from uffdballoon.target.process import Thread
from uffdballoon.vmm.qemu import threads as module
from uffdballoon.vmm.qemu.threads import Found, find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uffdballoon.target.process import Target

MAIN = "qemu-system-x86"
EXE = "/usr/bin/qemu-system-x86_64"
RCU = 11


def find(
    *names: str,
    sleeps_in: Sequence[int | None] = (FUTEX,),
    born: Callable[[int], int] = lambda tid: tid,
    exe: str = EXE,
    cmdline: tuple[str, ...] = (EXE,),
) -> Found:
    """Look among threads of these names, whose ids begin with 10; the last sleep lasts."""
    sleeps = list(sleeps_in)
    target = SimpleNamespace(
        exe=exe,
        cmdline=cmdline,
        threads=lambda: [Thread(tid, name) for tid, name in enumerate(names, start=10)],
        started_ticks=born,
        system_call=lambda _tid: sleeps.pop(0) if len(sleeps) > 1 else sleeps[0],
    )
    return find_rcu_thread(cast("Target", target))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0)


@pytest.mark.parametrize("number", [FUTEX, NANOSLEEP, CLOCK_NANOSLEEP])
def test_one_that_has_its_name_and_sleeps_as_it_does_is_it(number: int) -> None:
    found = find(MAIN, "IO io0", "call_rcu", "CPU 0/KVM", sleeps_in=[number])
    assert found.why == ""
    assert found.thread is not None
    assert (found.thread.tid, number in found.thread.sleeps_in) == (12, True)


def test_the_first_born_one_has_the_programs_name() -> None:
    found = find(MAIN, MAIN, "CPU 0/KVM")
    assert found.thread is not None
    assert found.thread.tid == RCU


@pytest.mark.parametrize(
    ("main", "first", "exe", "cmdline"),
    [
        ("guest=web", "qemu-system-x86", EXE, (EXE,)),
        ("guest=web", "qemu-system-x86", f"{EXE} (deleted)", ()),
        ("guest=web", "qemu-kvm", EXE, ("/usr/bin/qemu-kvm",)),
        ("guest=web", "guest=web", EXE, (EXE,)),
        ("guest=web", "kvm", "", ("kvm",)),
    ],
)
def test_the_first_born_one_may_have_any_name_of_the_program(
    main: str, first: str, exe: str, cmdline: tuple[str, ...]
) -> None:
    assert find(main, first, exe=exe, cmdline=cmdline).thread is not None


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ((MAIN,), "no thread but the main one"),
        ((), "no thread but the main one"),
        (("call_rcu",), "no thread but the main one"),
        ((MAIN, "call_rcu", "call_rcu"), "2 of its threads are named call_rcu"),
        ((MAIN, "CPU 0/KVM", MAIN), "its first-born thread is named 'CPU 0/KVM'"),
    ],
)
def test_where_none_is_certain_it_is_said_why(names: tuple[str, ...], why: str) -> None:
    found = find(*names)
    assert found.thread is None
    assert why in found.why


def test_a_thread_that_is_younger_than_another_is_not_the_first_born() -> None:
    ticks = {11: 500, 12: 499, 13: 600}
    assert "not its first-born" in find(MAIN, MAIN, MAIN, MAIN, born=ticks.__getitem__).why
    ticks[12] = 500
    assert find(MAIN, MAIN, MAIN, MAIN, born=ticks.__getitem__).thread is not None, "a tie"


def test_another_that_ends_meanwhile_is_not_older() -> None:
    def born(tid: int) -> int:
        if tid != RCU:
            raise TargetGoneError("gone")
        return 500

    assert find(MAIN, MAIN, MAIN, born=born).thread is not None


def test_one_that_has_work_is_waited_for() -> None:
    assert find(MAIN, MAIN, sleeps_in=[None, 7, None, NANOSLEEP]).thread is not None


def test_one_that_never_sleeps_so_is_not_taken() -> None:
    assert "does not sleep as an RCU thread does" in find(MAIN, MAIN, sleeps_in=[None]).why
    assert "does not sleep as an RCU thread does" in find(MAIN, MAIN, sleeps_in=[7]).why


def test_one_that_is_in_an_ioctl_may_be_a_vcpu() -> None:
    assert "seems to be a vCPU" in find(MAIN, MAIN, sleeps_in=[None, IOCTL]).why
