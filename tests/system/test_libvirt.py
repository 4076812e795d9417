# SPDX-License-Identifier: GPL-2.0-or-later
"""Enforced beside a real libvirt, which notices nothing but the balloon."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Command
from tests.support.libvirt import NAME, UID, Libvirt
from tests.support.marks import REAL_QEMU
from tests.support.resources import resources_of
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def balloon_kib(libvirt: Libvirt) -> int:
    """Ask libvirt how much memory the guest has left."""
    stats = libvirt.virsh("domstats", NAME, "--balloon")
    return int(re.findall(r"balloon\.current=(\d+)", stats)[0])


def wait_until_ballooned(command: Command, pid: int, size_bytes: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while command.ask("status", pid)["ballooned_bytes"] != size_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_domain_of_libvirt_is_enforced_and_libvirt_goes_on(libvirt: Libvirt) -> None:
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
    with command.attached(libvirt.pid, "--qmp", libvirt.qmp_path) as manager:
        libvirt.guest.balloon_inflate(BALLOON)
        wait_until_ballooned(command, libvirt.pid, BALLOON.size_bytes)
        assert balloon_kib(libvirt) == (RAM_MIB << 10) - (BALLOON.size_bytes >> 10)
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

    assert balloon_kib(libvirt) == RAM_MIB << 10
    deadline = time.monotonic() + _PATIENCE_S
    while resources_of(libvirt.pid) != before:  # QEMU closes its end of the monitor's connection
        assert time.monotonic() < deadline, (resources_of(libvirt.pid), before)
        time.sleep(0.01)
    for span in (OWNED, BALLOON):
        assert libvirt.guest.verify(span, SEED).bad_lines == 0
