# SPDX-License-Identifier: GPL-2.0-or-later
"""Injection on a process that checks its own state at every turn."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.killing import kill_amid
from tests.support.resources import traced_threads
from tests.support.victim import Victim, build_victim
from uffdballoon.errors import TargetBusyError, TargetGoneError
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import Choice, obtain_userfaultfd
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.needs_ptrace,
    pytest.mark.needs_userfaultfd,
    pytest.mark.needs_root,
]

_PATIENCE_S = 20.0
_INTERRUPTED = """
import signal, sys, threading, time
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target

def interrupt(remote):
    # Again: one that comes right before the main thread begins to wait does not wake it.
    while not caught.is_set():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01)
    print("done", flush=True)

caught = threading.Event()
def catch(number, frame):
    if not caught.is_set():
        caught.set()
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, catch)
with Target.open(int(sys.argv[1]), any_process=True) as target, Injector(target) as injector:
    try:
        injector.run(interrupt)
    except KeyboardInterrupt:
        print("interrupted")
    print(obtain_userfaultfd(injector).method)
"""
_KILLS = 70  # for each of three modes: more than 200 in all


@pytest.fixture(scope="module")
def victim_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_victim(tmp_path_factory.mktemp("victim"))


@pytest.fixture(params=["sleep", "poll", "spin"])
def victim(request: pytest.FixtureRequest, victim_binary: Path) -> Iterator[Victim]:
    with Victim(victim_binary, request.param) as victim:
        yield victim


def _attach_once(pid: int, method: Choice) -> str:
    with Target.open(pid, any_process=True) as target, Injector(target) as injector:
        obtained = obtain_userfaultfd(injector, method)
    obtained.uffd.close()
    return obtained.method


def _obtain_over_and_over(pid: int, method: Choice, begin: Callable[[], object]) -> None:
    with Target.open(pid, any_process=True) as target, Injector(target) as injector:
        begin()
        while True:
            obtain_userfaultfd(injector, method).uffd.close()


@pytest.mark.parametrize("method", ["direct", "passed"])
def test_attaching_leaves_registers_mask_fds_and_maps_as_they_were(
    victim: Victim, method: Choice
) -> None:
    before = victim.resources()
    for _ in range(20):
        assert _attach_once(victim.pid, method) == method
    victim.wait_for_turns()
    assert victim.broken() == 0
    assert victim.resources() == before


def test_who_is_interrupted_while_a_call_runs_does_not_wait_for_ever(victim: Victim) -> None:
    """As by Ctrl-C in an attach: the call goes to its end, and so does the attach."""
    before = victim.resources()
    with subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(victim.pid)], stdout=subprocess.PIPE, text=True
    ) as manager:
        try:
            said, _ = manager.communicate(timeout=_PATIENCE_S)
        finally:
            manager.kill()
    assert said.split() == ["done", "interrupted", "direct"]
    victim.wait_for_turns()
    assert victim.broken() == 0
    assert victim.resources() == before


def test_a_killed_manager_leaves_nothing_in_the_target(victim: Victim) -> None:
    chance = random.Random(victim.pid)  # noqa: S311 - moments, not secrets
    before = victim.resources()
    amid = 0
    for turn in range(_KILLS):
        method: Choice = "passed" if turn % 2 else "direct"
        held = kill_amid(
            functools.partial(_obtain_over_and_over, victim.pid, method),
            chance,
            within_s=0.006,
            look=(lambda: traced_threads(victim.pid)) if turn % 4 > 1 else None,
        )
        amid += bool(held)
        victim.wait_for_turns()
        assert victim.broken() == 0
        assert victim.resources() == before
    assert amid > _KILLS // 20, "hardly any was killed while it held the thread"


def test_an_unprivileged_target_gets_its_userfaultfd_passed() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    with subprocess.Popen([*command, "sleep", "60"]) as process:
        try:
            # Its libc has to be there, for the calls that are run from it.
            while "State:\tS" not in _status(process.pid) or "sleep" not in str(
                Path(f"/proc/{process.pid}/exe").readlink()
            ):
                pass
            assert _attach_once(process.pid, "auto") == "passed"
            assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) == 3
        finally:
            process.kill()


def test_a_target_that_is_traced_is_refused_by_name(victim: Victim) -> None:
    tracer = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", "-p", str(victim.pid)], stderr=subprocess.DEVNULL
    )
    try:
        while f"TracerPid:\t{tracer.pid}" not in _status(victim.pid):
            assert tracer.poll() is None
        with pytest.raises(TargetBusyError) as refused:
            _attach_once(victim.pid, "auto")
        assert str(tracer.pid) in refused.value.why
    finally:
        tracer.kill()
        tracer.wait()
    victim.wait_for_turns()


def test_a_target_that_is_gone_is_named(victim_binary: Path) -> None:
    with Victim(victim_binary, "sleep") as victim:
        target = Target.open(victim.pid, any_process=True)
    with target, pytest.raises(TargetGoneError):
        obtain_userfaultfd(Injector(target))


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()
