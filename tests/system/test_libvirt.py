# SPDX-License-Identifier: GPL-2.0-or-later
"""Enforced beside a real libvirt, which notices nothing but the balloon."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Command
from tests.support.libvirt import NAME, UID, Libvirt
from tests.support.marks import REAL_QEMU
from tests.support.resources import resources_of
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access
from uffdballoon.target.injector import Injector
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.balloon_log import BalloonLog
from uffdballoon.vmm.qemu.log_file import NAME as NAME_OF_LOG
from uffdballoon.vmm.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Iterator

_BRIDGE = "uffdballoon.vmm.qemu.libvirt_bridge"
pytestmark = [*REAL_QEMU, pytest.mark.needs_libvirt]

RAM_MIB = 192
BALLOON = GpaRange.of(64 << 20, 4 << 20)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0x11B
_PATIENCE_S = 20.0


@pytest.fixture
def libvirt() -> Iterator[Libvirt]:
    with Libvirt(RAM_MIB) as running:
        yield running


@pytest.fixture
def with_second_monitor() -> Iterator[Libvirt]:
    with Libvirt(RAM_MIB, second_monitor=True) as running:
        yield running


def balloon_kib(libvirt: Libvirt) -> int:
    """Ask libvirt how much memory the guest has left."""
    stats = libvirt.virsh("domstats", NAME, "--balloon")
    return int(re.findall(r"balloon\.current=(\d+)", stats)[0])


def wait_until_ballooned(command: Command, pid: int, size_bytes: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while command.ask("status", pid)["ballooned_bytes"] != size_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_left(libvirt: Libvirt, left_kib: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while balloon_kib(libvirt) != left_kib:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_domain_of_libvirt_is_enforced_and_libvirt_goes_on(
    with_second_monitor: Libvirt,
) -> None:
    libvirt = with_second_monitor
    libvirt.guest.fill(OWNED, SEED)
    with Target.open(libvirt.pid) as target:
        confined = target.confinement()
    assert (confined.uid, confined.capabilities) == (UID, 0)
    assert confined.no_new_privs
    assert confined.seccomp
    assert "mnt" in confined.foreign_namespaces
    assert balloon_kib(libvirt) == RAM_MIB << 10
    before = resources_of(libvirt.pid)

    command = Command()
    with command.attached(libvirt.pid) as manager:  # the second one is free, and used
        assert command.ask("status", libvirt.pid)["manager"]["monitor"]
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
        # libvirt knows by QEMU's events, which come once a second at most.
        wait_until_left(libvirt, (RAM_MIB << 10) - (BALLOON.size_bytes >> 10))
        libvirt.guest.touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        libvirt.guest.touch_on_second(
            GpaRange.of(BALLOON.start + PAGE_BYTES, PAGE_BYTES), Access.WRITE
        )
        events = command.run("events", libvirt.pid, "--json").stdout
        assert re.findall(r'"kind": "violation".*?"vcpu": (\d+)', events) == ["0", "1"]
        assert command.ask("status", libvirt.pid)["uffd_method"] == "passed"

        assert "rss" in libvirt.virsh("dommemstat", NAME)
        libvirt.virsh("suspend", NAME)
        libvirt.virsh("resume", NAME)
        assert "running" in libvirt.virsh("domstate", NAME)

        libvirt.guest.balloon_deflate(BALLOON)
        libvirt.guest.fill(BALLOON, SEED)
        wait_until_ballooned(command, libvirt.pid, 0)
        assert command.ask("status", libvirt.pid)["touches"]["violations"] == 2
        assert command.run("detach", libvirt.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0

    wait_until_left(libvirt, RAM_MIB << 10)
    deadline = time.monotonic() + _PATIENCE_S
    while resources_of(libvirt.pid) != before:  # QEMU closes its end of the monitor's connection
        assert time.monotonic() < deadline, (resources_of(libvirt.pid), before)
        time.sleep(0.01)
    for span in (OWNED, BALLOON):
        assert libvirt.guest.verify(span, SEED).bad_lines == 0


def bridges(pid: int) -> list[int]:
    """List the processes that give the monitor of a domain."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if _BRIDGE.encode() in words and str(pid).encode() in words:
                found.append(int(entry.parent.name))
    return found


def wait_until_no_bridge_is_left(pid: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while bridges(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_event(command: Command, pid: int, kind: str) -> None:
    deadline = time.monotonic() + 2 * _PATIENCE_S
    while f'"kind": "{kind}"' not in command.run("events", pid, "--json").stdout:
        assert time.monotonic() < deadline, command.run("events", pid).stdout
        time.sleep(0.05)


def reset(libvirt: Libvirt) -> None:
    libvirt.virsh("reset", NAME)
    libvirt.guest.wait_for_boot()


def test_a_domain_has_its_monitor_by_libvirt_with_no_option(libvirt: Libvirt) -> None:
    command = Command(environment={"LIBVIRT_DEFAULT_URI": libvirt.uri})
    libvirt.guest.fill(OWNED, SEED)
    with command.attached(libvirt.pid, "--policy", "kill") as manager:
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
        wait_for_event(command, libvirt.pid, "balloon-change")
        left = command.ask("status", libvirt.pid)["balloon"]["actual_bytes"]
        assert left == (RAM_MIB << 20) - BALLOON.size_bytes

        libvirt.virsh("setmem", NAME, f"{RAM_MIB - 4}M")
        libvirt.virsh("suspend", NAME)
        wait_for_event(command, libvirt.pid, "stopped")
        libvirt.virsh("resume", NAME)
        wait_for_event(command, libvirt.pid, "resumed")
        said = libvirt.virsh("qemu-monitor-command", NAME, '{"execute": "query-status"}')
        assert '"running":true' in said
        assert "rss" in libvirt.virsh("dommemstat", NAME)
        libvirt.virsh("dump", NAME, str(libvirt.directory / "core"), "--memory-only")
        assert libvirt.guest.verify(OWNED, SEED).bad_lines == 0

        reset(libvirt)
        wait_for_event(command, libvirt.pid, "reset")
        wait_until_ballooned(command, libvirt.pid, 0)
        libvirt.guest.fill(BALLOON, SEED)
        assert command.ask("status", libvirt.pid)["touches"]["violations"] == 0
        assert command.run("detach", libvirt.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0
    wait_until_no_bridge_is_left(libvirt.pid)
    assert libvirt.guest.verify(BALLOON, SEED).bad_lines == 0


def test_qemu_tells_of_each_page_by_libvirt_and_has_its_log_back(libvirt: Libvirt) -> None:
    with Target.open(libvirt.pid) as target, Injector(target) as injector:
        before = target.fds()[2]
        with Monitor.connect(libvirt.uri, pid=libvirt.pid) as monitor:
            log = BalloonLog(monitor, injector, trust_seccomp=False, progress=print)
            libvirt.guest.balloon_inflate(BALLOON)
            told = os.pread(log.fd, 1 << 20, 0)
            log.close()
        assert told.count(b"virtio_balloon_handle_output ") == BALLOON.size_bytes // PAGE_BYTES
        assert b"virtio_balloon_set_config " in told
        links = list(target.fds().values())
        assert links.count(before) >= 2  # its standard error, and its log
        assert not any(NAME_OF_LOG in link for link in links)
    assert "running" in libvirt.virsh("domstate", NAME)


def test_a_domain_is_followed_by_what_its_qemu_logs(libvirt: Libvirt) -> None:
    command = Command(environment={"LIBVIRT_DEFAULT_URI": libvirt.uri})
    libvirt.guest.fill(OWNED, SEED)
    with command.attached(libvirt.pid, "--observer", "monitor") as manager:
        assert command.ask("status", libvirt.pid)["observer"] == "monitor"
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
        libvirt.guest.balloon_deflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, 0)
        assert command.ask("status", libvirt.pid)["touches"]["violations"] == 0
        assert command.run("detach", libvirt.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0
    with Target.open(libvirt.pid) as target:
        assert not any(NAME_OF_LOG in link for link in target.fds().values())
    assert libvirt.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_reset_by_libvirt_is_known_before_a_touch_is_punished(libvirt: Libvirt) -> None:
    command = Command()
    with command.attached(libvirt.pid, "--qmp", libvirt.uri, "--policy", "kill"):
        for _ in range(5):
            libvirt.guest.balloon_inflate(BALLOON)
            wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
            reset(libvirt)
            libvirt.guest.touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        assert command.ask("status", libvirt.pid)["touches"]["violations"] == 0


def test_a_pause_is_by_libvirt(libvirt: Libvirt) -> None:
    command = Command()
    with command.attached(libvirt.pid, "--qmp", libvirt.uri, "--policy", "pause"):
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
        touch = libvirt.guest.start_touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        wait_for_event(command, libvirt.pid, "stopped")
        assert "paused" in libvirt.virsh("domstate", NAME)
        libvirt.virsh("resume", NAME)
        assert touch.wait().count == 1


def test_a_libvirt_that_restarts_is_survived(libvirt: Libvirt) -> None:
    command = Command()
    with command.attached(libvirt.pid, "--qmp", libvirt.uri):
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
        libvirt.stop_daemon()
        wait_for_event(command, libvirt.pid, "monitor-lost")
        libvirt.guest.touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        libvirt.start_daemon()
        wait_for_event(command, libvirt.pid, "monitor-back")
        reset(libvirt)
        wait_for_event(command, libvirt.pid, "reset")
        wait_until_ballooned(command, libvirt.pid, 0)
        assert "running" in libvirt.virsh("domstate", NAME)
    wait_until_no_bridge_is_left(libvirt.pid)


def test_a_manager_that_was_killed_leaves_the_bridge_to_the_next(libvirt: Libvirt) -> None:
    command = Command()
    arguments = ("--qmp", libvirt.uri, "--on-exit", "hold", "--observer", "trace")
    with command.attached(libvirt.pid, *arguments):
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
    (bridge,) = bridges(libvirt.pid)
    reset(libvirt)
    with command.attached(libvirt.pid, *arguments):
        assert bridges(libvirt.pid) == [bridge]
        wait_until_ballooned(command, libvirt.pid, 0)
        assert command.run("detach", libvirt.pid).returncode == 0
    wait_until_no_bridge_is_left(libvirt.pid)


def test_a_bridge_gives_no_monitor_of_another_process(libvirt: Libvirt) -> None:
    """The same uuid and libvirt's names for all: another QEMU, of which libvirt knows nothing."""
    domain = Path(f"/proc/{libvirt.pid}/cmdline").read_bytes().split(b"\0")
    uuid = domain[domain.index(b"-uuid") + 1].decode()
    command = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-display", "none", "-S"]
    command += ["-uuid", uuid, "-chardev", "null,id=charmonitor", "-nodefaults"]
    with subprocess.Popen(command) as another:
        try:
            refused = Command().run(
                "attach", another.pid, "--qmp", libvirt.uri, "--policy", "pause"
            )
            assert refused.returncode == 1, refused.stderr
            assert "is another process" in refused.stderr
        finally:
            another.kill()
    assert bridges(another.pid) == []


def test_a_freeze_is_waited_for_by_suspend_and_ends_by_itself(libvirt: Libvirt) -> None:
    command = Command()
    with command.attached(libvirt.pid, "--qmp", libvirt.uri, "--policy", "freeze=2s,observe"):
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
        touch = libvirt.guest.start_touch(GpaRange.of(BALLOON.start, PAGE_BYTES), Access.WRITE)
        wait_for_event(command, libvirt.pid, "violation")
        assert "running" in libvirt.virsh("domstate", NAME)
        libvirt.virsh("suspend", NAME)
        libvirt.virsh("resume", NAME)
        assert balloon_kib(libvirt) > 0
        assert command.run("status", libvirt.pid).returncode == 0
        assert touch.wait().count == 1


def test_a_libvirt_that_cannot_be_reached_is_done_without_unless_it_is_needed(
    libvirt: Libvirt,
) -> None:
    nowhere = f"qemu+unix:///system?socket={libvirt.directory}/nowhere"
    command = Command(environment={"LIBVIRT_DEFAULT_URI": nowhere})
    refused = command.run("attach", libvirt.pid, "--policy", "kill")
    assert refused.returncode == 1
    assert "libvirt does not give the monitor" in refused.stderr
    with command.attached(libvirt.pid) as manager:
        assert command.run("detach", libvirt.pid).returncode == 0
        assert "going on without the monitor" in manager.communicate()[1]
    assert bridges(libvirt.pid) == []


def test_doctor_looks_through_libvirt_as_attach_does(libvirt: Libvirt) -> None:
    command = Command(environment={"LIBVIRT_DEFAULT_URI": libvirt.uri})
    told = command.run("doctor", "--pid", libvirt.pid)
    assert told.returncode == 0, told.stdout
    assert "by monitor of QEMU" in told.stdout
    wait_until_no_bridge_is_left(libvirt.pid)
