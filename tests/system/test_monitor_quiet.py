# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's log as an observer: managers that nobody wakes, and that leave their traps to another."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached
from tests.support.holding import HOLD, ask, detach, end, is_kept, serve, status, wait_until
from tests.support.marks import REAL_QEMU
from tests.support.moments import OWN, OWNED, SEED
from tests.support.resources import userfaultfd_mappings
from uffdballoon.daemon import client
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access
from uffdballoon.vmm.qemu.log_file import NAME

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

_PATIENCE_S = 60.0
_QUIET_S = 3.0
_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)


@pytest.fixture
def guest(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


def _switches(pid: int) -> int:
    """Count how often threads of a process went to sleep, or had to make room."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    texts = [(task / "status").read_text() for task in tasks]
    return sum(int(number) for text in texts for number in _SWITCHES.findall(text))


def test_nobody_wakes_a_manager_whose_guest_is_idle(guest: Qemu) -> None:
    with attached(guest, "--observer", "monitor") as manager:
        guest.guest.balloon_inflate(OWN)
        wait_until(lambda: client.status(guest.pid).windows > 0)
        deadline = time.monotonic() + _PATIENCE_S
        before = -1
        while before != (now := _switches(manager.pid)):
            assert time.monotonic() < deadline, "it wakes all the time"
            before = now
            time.sleep(_QUIET_S)
        # It was asleep, and not deaf.
        guest.guest.balloon_deflate(OWN)
        wait_until(lambda: userfaultfd_mappings(guest.pid) == 0)
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0


def test_another_manager_goes_on_with_the_traps_and_takes_the_log(guest: Qemu) -> None:
    arguments = (*HOLD, "--observer", "monitor", "--qmp", guest.qmp_path, "--policy", "observe")
    with serve(guest, *arguments) as first:
        guest.guest.balloon_inflate(OWN)
        wait_until(lambda: status(first)["windows"] > 0)
        end(first)
    assert is_kept(guest)
    assert userfaultfd_mappings(guest.pid) > 0
    touched = GpaRange.of(OWN.start, 4 * PAGE_BYTES)
    pending = guest.guest.start_touch(touched, Access.WRITE)
    with serve(guest, *arguments) as second:
        pending.wait()
        state = status(second)
        # What the guest did meanwhile nobody was told: that is held against nobody.
        assert state["touches"]["violations"] == 0
        assert state["ballooned_bytes"] == OWN.size_bytes - touched.size_bytes
        guest.guest.balloon_deflate(OWN)
        wait_until(lambda: status(second)["ballooned_bytes"] == 0)
        guest.guest.fill(OWN, SEED)
        guest.guest.balloon_inflate(OWN)
        wait_until(lambda: status(second)["ballooned_bytes"] == OWN.size_bytes)
        guest.guest.touch(touched, Access.WRITE)
        state = status(second)
        assert state["touches"]["violations"] == 4
        assert state["balloon"]["unaccounted_bytes"] == touched.size_bytes
        assert ask(second, "verify")["disagreements"] == []
        detach(second)
    guest.guest.balloon_deflate(OWN)
    assert not is_kept(guest)
    assert userfaultfd_mappings(guest.pid) == 0
    links = [str(fd.readlink()) for fd in Path(f"/proc/{guest.pid}/fd").iterdir()]
    assert not any(NAME in link for link in links)
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0
