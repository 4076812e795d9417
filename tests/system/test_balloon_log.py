# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's log, taken for a while and given back as it was."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from uffdballoon.errors import UnsupportedError
from uffdballoon.host.privileges import (
    Capability,
    enter_sandbox,
    held_capabilities,
    keep_capabilities,
)
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.target.injector import Injector
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu import log_file
from uffdballoon.vmm.qemu.balloon_log import MOST_BYTES, BalloonLog
from uffdballoon.vmm.qemu.log_events import EVENTS
from uffdballoon.vmm.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = REAL_QEMU

RAM_BYTES = 128 << 20
BALLOON = GpaRange.of(64 << 20, 2 << 20)
_PATIENCE_S = 30.0
_MARK = "virtio_balloon_to_target"  # an event of the test's own: whoever sets a target logs a line
_PAGE = re.compile(rb"virtio_balloon_handle_output section name: .* gpa: 0x([0-9a-f]+)")
_ACTUAL = re.compile(rb"virtio_balloon_set_config .*")


@pytest.fixture(params=["stderr", "file"])
def logging(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "stderr" else tmp_path / "qemu.log"


@pytest.fixture
def guest(logging: Path | None, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    extra = () if logging is None else ("-D", str(logging))
    memory = Memory(size_bytes=RAM_BYTES)
    return start_qemu(QemuOptions(accel=Accel.TCG, memory=memory, extra=extra))


@contextlib.contextmanager
def diverted(qemu: Qemu, said: list[str] | None = None) -> Iterator[BalloonLog]:
    progress = (said if said is not None else []).append
    with (
        Target.open(qemu.pid) as target,
        Injector(target) as injector,
        Monitor.connect(str(qemu.qmp_path), pid=qemu.pid) as monitor,
    ):
        log = BalloonLog(monitor, injector, trust_seccomp=False, progress=progress)
        try:
            yield log
        finally:
            log.close()


def log_of(qemu: Qemu, path: Path | None) -> str:
    return qemu.log if path is None else path.read_text()


def write_a_line(qemu: Qemu, megabytes: int) -> str:
    """Have QEMU log that a target was set; return a part of its line."""
    qemu.monitor.execute("trace-event-set-state", name=_MARK, enable=True)
    qemu.monitor.execute("balloon", value=megabytes << 20)
    qemu.monitor.execute("trace-event-set-state", name=_MARK, enable=False)
    return f"{_MARK} balloon target: {megabytes << 20:#x} "


def states_of(qemu: Qemu) -> list[str]:
    return [qemu.monitor.execute("trace-event-get-state", name=name)[0]["state"] for name in EVENTS]


def fds_of(qemu: Qemu) -> list[str]:
    links = []
    for fd in Path(f"/proc/{qemu.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(fd.readlink()))
    return sorted(links)


def test_each_page_is_told_and_how_many_there_are_after_each_batch(guest: Qemu) -> None:
    pages = BALLOON.size_bytes // PAGE_BYTES
    with diverted(guest) as log:
        guest.guest.balloon_inflate(BALLOON)
        text = os.pread(log.fd, 1 << 20, 0)
        told = [int(gpa, 16) for gpa in _PAGE.findall(text)]
        assert told == list(range(BALLOON.start, BALLOON.end, PAGE_BYTES))
        assert len(_ACTUAL.findall(text)) == pages // 256
        assert os.fstatvfs(log.fd).f_blocks * os.fstatvfs(log.fd).f_frsize == MOST_BYTES
        assert states_of(guest) == ["enabled", "enabled"]
    assert states_of(guest) == ["disabled", "disabled"]


def test_what_is_logged_goes_on_where_it_was_and_nothing_is_cut(
    guest: Qemu, logging: Path | None
) -> None:
    before = write_a_line(guest, 100)
    assert before in log_of(guest, logging)
    fds = fds_of(guest)
    for megabytes in (101, 103):
        with diverted(guest) as log:
            meanwhile = write_a_line(guest, megabytes)
            assert meanwhile.encode() in os.pread(log.fd, 1 << 16, 0)
            guest.guest.balloon_inflate(BALLOON)
        after = write_a_line(guest, megabytes + 1)
        text = log_of(guest, logging)
        assert text.index(before) < text.index(after)
        assert meanwhile not in text
        assert "\0" not in text
    # QEMU's RCU thread closes what it logged to before, in its own time.
    deadline = time.monotonic() + _PATIENCE_S
    while len(fds_of(guest)) != len(fds) + (logging is None):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not any(log_file.NAME in link for link in fds_of(guest))


def test_events_that_another_had_on_stay_on(guest: Qemu) -> None:
    guest.monitor.execute("trace-event-set-state", name=EVENTS[0], enable=True)
    with diverted(guest):
        pass
    assert states_of(guest) == ["enabled", "disabled"]


def test_a_manager_that_was_killed_is_cleaned_up_after(guest: Qemu, logging: Path | None) -> None:
    before = write_a_line(guest, 100)
    child = os.fork()
    if child == 0:
        with diverted(guest):
            os.kill(os.getpid(), 9)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert states_of(guest) == ["enabled", "enabled"]
    guest.guest.balloon_inflate(BALLOON)
    said: list[str] = []
    with diverted(guest, said) as log:
        guest.guest.balloon_deflate(BALLOON)
        assert _PAGE.search(os.pread(log.fd, 1 << 16, 0))
    assert any("it is given back" in line for line in said)
    assert states_of(guest) == ["disabled", "disabled"]
    after = write_a_line(guest, 101)
    text = log_of(guest, logging)
    assert text.index(before) < text.index(after)
    assert "handle_output" not in text


def test_a_log_that_was_set_by_another_meanwhile_is_left(guest: Qemu, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with diverted(guest):
        guest.monitor.hmp(f"logfile {other}")
    assert write_a_line(guest, 100) in other.read_text()


def test_a_file_that_qemu_cannot_open_leaves_the_log_as_it_was(
    guest: Qemu, logging: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_a_line(guest, 100)
    real = Monitor.hmp

    def hmp(self: Monitor, line: str) -> str:
        return real(self, line.replace("logfile /proc/self/fd/", "logfile /proc/no/such/"))

    monkeypatch.setattr(Monitor, "hmp", hmp)
    with pytest.raises(UnsupportedError, match="does not open the file"), diverted(guest):
        pass
    after = write_a_line(guest, 101)
    text = log_of(guest, logging)
    assert text.index(before) < text.index(after)
    assert states_of(guest) == ["disabled", "disabled"]


def test_a_qemu_in_the_background_that_cannot_open_the_file_keeps_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "qemu.log"
    real = Monitor.hmp

    def hmp(self: Monitor, line: str) -> str:
        return real(self, line.replace("logfile /proc/self/fd/", "logfile /proc/no/such/"))

    with (
        daemonized(tmp_path, "-D", str(file)) as pid,
        Target.open(pid) as target,
        Injector(target) as injector,
        Monitor.connect(str(tmp_path / "qmp"), pid=pid) as monitor,
    ):
        before = target.fds()
        monkeypatch.setattr(Monitor, "hmp", hmp)
        with pytest.raises(UnsupportedError, match="does not open the file"):
            BalloonLog(monitor, injector, trust_seccomp=False, progress=print)
        assert target.fds() == before
        monitor.execute("trace-event-set-state", {"name": _MARK, "enable": True})
        monitor.execute("balloon", {"value": 50 << 20})
        assert _MARK in file.read_text()


def test_a_monitor_that_hangs_up_is_connected_to_again_to_give_the_log_back(
    guest: Qemu, logging: Path | None
) -> None:
    with diverted(guest) as log:
        connection = socket.socket(fileno=os.dup(log._monitor.relay.monitor_fd))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    assert states_of(guest) == ["disabled", "disabled"]
    assert write_a_line(guest, 100) in log_of(guest, logging)


def test_a_manager_that_gave_its_privileges_up_gives_another_users_log_back(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    guest = start_qemu(QemuOptions(accel=Accel.TCG, run_as=65534))
    child = os.fork()
    if child == 0:
        with diverted(guest) as log:
            injector = log._log._injector
            target = injector.target
            held = held_capabilities() & {Capability.SYS_PTRACE, Capability.SYS_NICE}
            keep_capabilities(held)
            enter_sandbox(target.pid, injector.tid, target.pidfd, may_connect=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert states_of(guest) == ["disabled", "disabled"]
    assert write_a_line(guest, 100) in guest.log
    assert not any(log_file.NAME in link for link in fds_of(guest))


@contextlib.contextmanager
def daemonized(directory: Path, *arguments: str) -> Iterator[int]:
    """Run a QEMU that went into the background: its standard error is its log, or nothing."""
    pid_file = directory / "pid"
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    words += ["-m", "64", "-device", "virtio-balloon-pci", "-daemonize", "-pidfile", str(pid_file)]
    words += ["-qmp", f"unix:{directory}/qmp,server=on,wait=off", *arguments]
    subprocess.run(words, check=True)
    pid = int(pid_file.read_text())
    pidfd = os.pidfd_open(pid)
    try:
        yield pid
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


@pytest.mark.parametrize("has_log", [False, True])
def test_a_qemu_in_the_background_has_its_log_or_none_again(
    tmp_path: Path,
    has_log: bool,  # noqa: FBT001 - a parameter of a test
) -> None:
    file = tmp_path / "qemu.log"
    with (
        daemonized(tmp_path, *(("-D", str(file)) if has_log else ())) as pid,
        Target.open(pid) as target,
        Injector(target) as injector,
        Monitor.connect(str(tmp_path / "qmp"), pid=pid) as monitor,
    ):
        monitor.execute("trace-event-set-state", {"name": _MARK, "enable": True})
        before = target.fds()
        for megabytes in (50, 40):
            monitor.execute("balloon", {"value": megabytes << 20})
            log = BalloonLog(monitor, injector, trust_seccomp=False, progress=print)
            monitor.execute("balloon", {"value": megabytes - 1 << 20})
            assert os.pread(log.fd, 1 << 16, 0).count(_MARK.encode()) == 1
            log.close()
            monitor.execute("balloon", {"value": megabytes - 2 << 20})
            assert target.fds() == before
        if has_log:
            sizes = re.findall(r"target: 0x([0-9a-f]+)", file.read_text())
            assert [int(size, 16) >> 20 for size in sizes] == [50, 48, 40, 38]
