# SPDX-License-Identifier: GPL-2.0-or-later
"""A target has one manager, wherever that one listens, and root's are found by every root."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Command
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.errors import TargetBusyError
from uffdballoon.lab.qemu_options import Accel, Memory, QemuOptions
from uffdballoon.target.claim import Claim, claimant_of
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.lab.qemu import Qemu

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_qemu,
    pytest.mark.needs_ptrace,
    pytest.mark.needs_userfaultfd,
]
NOBODY = 65534


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))


@pytest.fixture
def elsewhere() -> Iterator[Command]:
    """The command with another runtime directory, as after another kind of login."""
    with tempfile.TemporaryDirectory() as path:
        yield Command(environment={"XDG_RUNTIME_DIR": path})


def test_roots_verbs_find_a_manager_whatever_the_login_says(tcg: Qemu, elsewhere: Command) -> None:
    with Command().attached(tcg.pid, "--qmp", tcg.qmp_path):
        assert elsewhere.ask("status", tcg.pid)["state"] == "attached"
        assert elsewhere.run("detach", tcg.pid).returncode == 0


def test_a_second_manager_is_refused_though_it_listens_elsewhere(tcg: Qemu) -> None:
    apart = Command(("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && "$@"', "sh"))
    with Command().attached(tcg.pid, "--qmp", tcg.qmp_path) as manager:
        done = apart.run("attach", tcg.pid)
        assert done.returncode == 1, done.stderr
        assert f"process {tcg.pid} is attached already" in done.stderr
        assert str(manager.pid) in done.stderr
        rows = json.loads(apart.run("list", "--json").stdout)
        assert [row["attached"] for row in rows if row["pid"] == tcg.pid] == [True]
    tcg.guest.ping()


def test_another_users_manager_is_named(tcg: Qemu) -> None:
    user = Command(("setpriv", f"--reuid={NOBODY}", "--clear-groups", "--"))
    with Command().attached(tcg.pid, "--qmp", tcg.qmp_path) as manager:
        done = user.run("status", tcg.pid)
    assert done.returncode == 3, done.stderr
    assert f"process {manager.pid} of uid 0" in done.stderr


def test_the_sockets_of_dead_managers_are_removed(tcg: Qemu) -> None:
    with Command().attached(tcg.pid, "--qmp", tcg.qmp_path) as manager:
        manager.send_signal(signal.SIGKILL)
        manager.wait()
        path = socket_path(tcg.pid)
        assert path.exists()
        assert Command().run("list").returncode == 0
        assert not path.exists()


def test_a_claim_ends_with_whoever_holds_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with Target.open(process.pid, any_process=True) as target:
                assert claimant_of(process.pid) is None
                with Claim(target):
                    claimant = claimant_of(process.pid)
                    assert claimant is not None
                    assert claimant == (os.getpid(), os.geteuid())
                    with pytest.raises(TargetBusyError):
                        Claim(target)
                assert claimant_of(process.pid) is None
                Claim(target).close()
        finally:
            process.kill()


@contextlib.contextmanager
def _locked_by_a_stranger(pid: int) -> Iterator[None]:
    """Have a process of nobody's hold the lock."""
    told, tell = os.pipe()
    stranger = os.fork()
    if stranger == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        fcntl.flock(os.pidfd_open(pid), fcntl.LOCK_EX)
        os.write(tell, b"x")
        signal.pause()
    try:
        assert os.read(told, 1) == b"x"
        yield
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)
        os.close(told)
        os.close(tell)


def test_a_stranger_who_locks_a_process_keeps_nobody_out() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with (
                _locked_by_a_stranger(process.pid),
                Target.open(process.pid, any_process=True) as target,
            ):
                assert claimant_of(process.pid) is None
                Claim(target).close()
        finally:
            process.kill()
