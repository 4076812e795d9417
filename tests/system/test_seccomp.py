# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets under seccomp filters: what the filters do not allow is never injected."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from tests.support.filters import ALLOW, LOAD_NUMBER, answering, build_filtered, packed
from tests.support.victim import Victim, build_victim
from uffdballoon.cli.doctor import doctor
from uffdballoon.errors import ExitCode, PermissionDeniedError
from uffdballoon.lab.qemu import Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.seccomp import Action
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import Choice, obtain_userfaultfd
from uffdballoon.target.process import Target
from uffdballoon.target.readiness import thread_state
from uffdballoon.target.seccomp import look_at_filters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.model.seccomp import Program

pytestmark = [
    pytest.mark.needs_ptrace,
    pytest.mark.needs_userfaultfd,
    pytest.mark.needs_root,
]

KILL = int(Action.KILL_PROCESS)
_DENY_ALL = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_PATIENCE_S = 10.0
_ATTACH = """
import os, sys
from uffdballoon.errors import UffdballoonError
from uffdballoon.target.injector import Injector
from uffdballoon.target.process import Target
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.seccomp import look_at_filters
pid = int(sys.argv[1])
pidfd = os.pidfd_open(pid)
try:
    permits = look_at_filters(pid, pidfd, trusted=len(sys.argv) > 2)
    with Target.open(pid, any_process=True) as target, Injector(target) as injector:
        print(obtain_userfaultfd(injector, permits=permits).method)
except UffdballoonError as error:
    print(int(error.exit_code), error)
"""


@pytest.fixture(scope="module")
def victim_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_victim(tmp_path_factory.mktemp("victim"))


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_filtered(tmp_path_factory.mktemp("filtered"))


@pytest.fixture
def start(
    filtered: Path, victim_binary: Path, tmp_path: Path
) -> Iterator[Callable[[list[Program]], Victim]]:
    """Start a victim under filters, the oldest first."""
    victims = []

    def start(programs: list[Program]) -> Victim:
        wrapper = command_under(filtered, tmp_path, programs)
        victims.append(Victim(victim_binary, "sleep", wrapper))
        return victims[-1]

    yield start
    for victim in victims:
        victim.process.kill()
        victim.process.wait()


def command_under(filtered: Path, directory: Path, programs: list[Program]) -> list[str]:
    files = []
    for index, program in enumerate(programs):
        files.append(directory / f"filter{index}")
        files[-1].write_bytes(packed(program))
    return [str(filtered), "run", *map(str, files), "--"]


def obtain(pid: int, choice: Choice = "auto") -> tuple[str, str]:
    with Target.open(pid, any_process=True) as target, Injector(target) as injector:
        obtained = obtain_userfaultfd(injector, choice)
    obtained.uffd.close()
    return obtained.method, obtained.refused_direct


def check_unharmed(victim: Victim) -> None:
    victim.wait_for_turns()
    assert victim.broken() == 0
    assert thread_state(victim.pid, victim.pid).tracer_pid == 0


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (KILL, "SIGSYS, which would end it"),
        (int(Action.KILL_THREAD), "SIGSYS, which would end it"),
        (int(Action.TRAP), "SIGSYS"),
        (Action.ERRNO | errno.EPERM, "EPERM"),
        (Action.ERRNO | errno.EACCES, "EACCES"),
        (Action.ERRNO | errno.ENOSYS, "ENOSYS"),
        (Action.ERRNO | errno.EINVAL, "EINVAL"),
        (int(Action.ERRNO), "success, without the call being made"),
        (int(Action.TRACE), "a tracer's decision, and it has none (ENOSYS)"),
        (int(Action.USER_NOTIF), "a supervisor's decision"),
    ],
)
def test_what_userfaultfd_is_refused_with_leads_to_the_other_way(
    start: Callable[[list[Program]], Victim], answer: int, named: str
) -> None:
    victim = start([answering({arch.USERFAULTFD: answer}), answering({})])
    before = victim.resources()
    method, refused = obtain(victim.pid)
    assert method == "passed"
    assert f"its seccomp filter answers userfaultfd(2) with {named}" in refused
    with pytest.raises(PermissionDeniedError, match="--uffd passed"):
        obtain(victim.pid, "direct")
    check_unharmed(victim)
    assert victim.resources() == before


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (arch.SOCKET, "socket(2)"),
        (arch.BIND, "bind(2)"),
        (arch.RECVMSG, "recvmsg(2)"),
        (arch.IOCTL, "ioctl(USERFAULTFD_IOC_NEW)"),
        (arch.RT_SIGRETURN, "rt_sigreturn(2)"),
        (arch.RESTART_SYSCALL, "restart_syscall(2)"),
    ],
)
def test_without_any_way_it_is_refused_by_name_and_lives(
    start: Callable[[list[Program]], Victim], number: int, name: str
) -> None:
    victim = start([answering({arch.USERFAULTFD: KILL}), answering({number: KILL})])
    before = victim.resources()
    with pytest.raises(PermissionDeniedError) as refused:
        obtain(victim.pid)
    assert refused.value.exit_code is ExitCode.PERMISSION
    assert "userfaultfd(2) with SIGSYS" in refused.value.why
    assert f"{name} with SIGSYS, which would end it" in refused.value.why
    check_unharmed(victim)
    assert victim.resources() == before


def test_a_number_that_is_not_known_yet_is_taken_for_the_one_that_harms(
    start: Callable[[list[Program]], Victim],
) -> None:
    of_one_fd = (
        LOAD_NUMBER,
        (0x15, 0, 3, arch.CLOSE),
        (0x20, 0, 0, 16),
        (0x15, 0, 1, 99),
        (0x06, 0, 0, KILL),
        ALLOW,
    )
    victim = start([of_one_fd])
    with pytest.raises(PermissionDeniedError, match=r"close\(2\) with SIGSYS"):
        obtain(victim.pid)
    check_unharmed(victim)


@pytest.mark.parametrize(("domain", "method"), [(2, "passed"), (1, None)])
def test_a_filter_of_arguments_is_asked_with_ours(
    start: Callable[[list[Program]], Victim], domain: int, method: str | None
) -> None:
    """A filter that ends who makes a socket of one domain, 1 is AF_UNIX."""
    of_domain = (
        LOAD_NUMBER,
        (0x15, 0, 3, arch.SOCKET),
        (0x20, 0, 0, 16),
        (0x15, 0, 1, domain),
        (0x06, 0, 0, KILL),
        ALLOW,
    )
    victim = start([answering({arch.USERFAULTFD: Action.ERRNO | errno.EPERM}), of_domain])
    if method is not None:
        assert obtain(victim.pid)[0] == method
    else:
        with pytest.raises(PermissionDeniedError, match=r"socket\(2\) with SIGSYS"):
            obtain(victim.pid)
    check_unharmed(victim)


def test_strict_mode_is_refused(filtered: Path) -> None:
    process = subprocess.Popen([filtered, "strict"])
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while "Seccomp:\t1" not in Path(f"/proc/{process.pid}/status").read_text():
            assert time.monotonic() < deadline
        with pytest.raises(PermissionDeniedError, match="strict seccomp mode"):
            obtain(process.pid)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_sleep_that_may_not_be_restarted_survives_the_look(
    filtered: Path, tmp_path: Path
) -> None:
    """The kernel itself goes on with a sleep by restart_syscall(2), which this filter kills."""
    wrapper = command_under(filtered, tmp_path, [answering({arch.RESTART_SYSCALL: KILL})])
    process = subprocess.Popen([*wrapper, filtered, "nap"], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        for _ in range(20):
            assert process.stdout.read(1) == b".", "it died, or its sleep failed"
            with pytest.raises(PermissionDeniedError, match="restart_syscall"):
                obtain(process.pid)
        assert process.stdout.read(2) == b".."
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("errors", [0, errno.EACCES])
def test_filters_that_we_may_not_read_are_a_refusal_unless_trusted(
    start: Callable[[list[Program]], Victim], errors: int
) -> None:
    answers = {arch.USERFAULTFD: Action.ERRNO | errors} if errors else {}
    victim = start([answering(answers)])
    before = victim.resources()
    less = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"]
    command = [*less, sys.executable, "-c", _ATTACH, str(victim.pid)]
    refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert refused.startswith("3 ")
    assert "CAP_SYS_ADMIN" in refused
    assert "--trust-seccomp" in refused
    trusted = subprocess.run([*command, "trusted"], capture_output=True, text=True, check=True)
    assert trusted.stdout.strip() == ("passed" if errors else "direct")
    check_unharmed(victim)
    assert victim.resources() == before


@pytest.fixture
def qemu_under(
    filtered: Path, tmp_path: Path, start_qemu: Callable[[QemuOptions], Qemu]
) -> Callable[[list[Program]], Qemu]:
    def start(programs: list[Program]) -> Qemu:
        wrapper = tmp_path / "qemu"
        command = " ".join(command_under(filtered, tmp_path, programs))
        wrapper.write_text(f'#!/bin/sh\nexec {command} qemu-system-x86_64 "$@"\n')
        wrapper.chmod(0o755)
        return start_qemu(QemuOptions(binary=str(wrapper), memory=Memory(size_bytes=192 << 20)))

    return start


@pytest.mark.needs_qemu
def test_memory_is_zapped_without_a_call_that_would_end_qemu(
    qemu_under: Callable[[list[Program]], Qemu],
) -> None:
    qemu = qemu_under([answering({arch.PROCESS_MADVISE: KILL, arch.USERFAULTFD: KILL})])
    span = GpaRange.of(64 << 20, 16 << 20)
    qemu.guest.fill(span, 0xC0FE)
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path))) as session:
        assert session.uffd_method == "passed"
        report = session.inflate(span, Granule.SMALL, guest_agreed=True)
        assert report.freed_bytes == span.size_bytes
        session.deflate(span, Granule.SMALL)
    qemu.guest.ping()


@pytest.mark.needs_qemu
@pytest.mark.parametrize("killed", [(arch.MADVISE,), (arch.USERFAULTFD, arch.SOCKET)])
def test_doctor_and_attach_refuse_for_the_same_reason(
    qemu_under: Callable[[list[Program]], Qemu], killed: tuple[int, ...]
) -> None:
    """QEMU itself advises little before its guest has a balloon, and makes its sockets early."""
    qemu = qemu_under([answering(dict.fromkeys(killed, Action.ERRNO | errno.EPERM))])
    with pytest.raises(PermissionDeniedError) as refused:
        Session(SessionOptions(pid=qemu.pid))
    told = CliRunner().invoke(doctor, ["--pid", str(qemu.pid), "--json"], standalone_mode=False)
    assert refused.value.why in told.output.replace("\\n", "")
    assert told.return_value == refused.value.exit_code
    qemu.guest.ping()


@pytest.mark.needs_qemu
@pytest.mark.parametrize("run_as", [None, 65534])
def test_the_sandbox_of_qemu_is_read_and_found_to_allow_a_way(
    start_qemu: Callable[[QemuOptions], Qemu], run_as: int | None
) -> None:
    qemu = start_qemu(
        QemuOptions(
            memory=Memory(size_bytes=128 << 20), run_as=run_as, extra=("-sandbox", _DENY_ALL)
        )
    )
    pidfd = os.pidfd_open(qemu.pid)
    permits = look_at_filters(qemu.pid, pidfd)
    os.close(pidfd)
    assert permits.filters >= 1
    assert permits.instructions > 50
    assert permits.may("passed")
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path))) as session:
        assert session.uffd_method == ("direct" if run_as is None else "passed")
    told = CliRunner().invoke(doctor, ["--pid", str(qemu.pid)], standalone_mode=False)
    assert f"{permits.filters} of {permits.instructions} instructions" in told.output
    qemu.guest.ping()
