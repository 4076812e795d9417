# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux driver's balloon, told of exactly: managers that stop or die amid, a hungry guest."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached
from tests.support.life import working
from tests.support.marks import REAL_QEMU
from uffdballoon.daemon import client
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Memory, QemuOptions
from uffdballoon.model.records.balloon import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [*REAL_QEMU, pytest.mark.needs_linux_guest]

RAM_BYTES = 768 << 20
BALLOON_BYTES = 256 << 20
LEFT_BYTES = RAM_BYTES - BALLOON_BYTES
EXACT = pytest.mark.parametrize("kind", ["monitor"])
WORK_BYTES = 192 << 20
CYCLES = 6
_PATIENCE_S = 90.0


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "reporting"])
def linux(request: pytest.FixtureRequest) -> Iterator[LinuxQemu]:
    """One guest for all: each test leaves its balloon empty."""
    options = QemuOptions(memory=Memory(size_bytes=RAM_BYTES), free_page_reporting=request.param)
    with LinuxQemu(options) as qemu:
        yield qemu


def by(kind: str) -> tuple[str, ...]:
    return ("--observer", kind, "--policy", "observe")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(qemu: LinuxQemu, left_bytes: int) -> None:
    qemu.monitor.execute("balloon", value=left_bytes)


def has_left(qemu: LinuxQemu, left_bytes: int) -> bool:
    return qemu.monitor.balloon_bytes() == left_bytes


def verified(qemu: LinuxQemu) -> Verification:
    return client.request(qemu.pid, "verify", Verification)


def check_ledger(qemu: LinuxQemu, ballooned_bytes: int) -> None:
    """Ledger, page tables and the guest agree on so much, once it is quiet."""

    wait_until(lambda: verified(qemu).ballooned_bytes == ballooned_bytes)
    assert verified(qemu) == Verification(
        ballooned_bytes=ballooned_bytes,
        actual_bytes=RAM_BYTES - ballooned_bytes,
        unaccounted_bytes=0,
        disagreements=(),
    )
    assert client.status(qemu.pid).touches.violations == 0


def reach(qemu: LinuxQemu, left_bytes: int) -> None:
    ask(qemu, left_bytes)
    wait_until(lambda: has_left(qemu, left_bytes))
    check_ledger(qemu, RAM_BYTES - left_bytes)


@EXACT
def test_a_manager_that_is_stopped_amid_an_inflate_holds_nobody_up(
    kind: str, linux: LinuxQemu
) -> None:
    _stop_amid_an_inflate(linux, kind, stopped_s=0)


@pytest.mark.campaign
@EXACT
def test_a_manager_that_is_stopped_for_ten_seconds_holds_nobody_up(
    kind: str, linux: LinuxQemu
) -> None:
    _stop_amid_an_inflate(linux, kind, stopped_s=10)


def _stop_amid_an_inflate(linux: LinuxQemu, kind: str, stopped_s: float) -> None:
    with working(linux), attached(linux, *by(kind)) as manager:
        ask(linux, LEFT_BYTES)
        wait_until(lambda: linux.monitor.balloon_bytes() < RAM_BYTES)
        os.kill(manager.pid, signal.SIGSTOP)
        wait_until(lambda: has_left(linux, LEFT_BYTES))
        until = time.monotonic() + stopped_s
        assert linux.guest.check("echo alive") == "alive\n"
        while time.monotonic() < until:
            assert linux.guest.check("echo alive") == "alive\n"
            assert has_left(linux, LEFT_BYTES)
        os.kill(manager.pid, signal.SIGCONT)
        check_ledger(linux, BALLOON_BYTES)
        reach(linux, RAM_BYTES)
        assert client.status(linux.pid).windows == 0


@EXACT
def test_a_manager_that_is_killed_amid_an_inflate_hurts_nobody(kind: str, linux: LinuxQemu) -> None:
    with working(linux):
        with attached(linux, *by(kind)) as manager:
            ask(linux, LEFT_BYTES)
            wait_until(lambda: linux.monitor.balloon_bytes() < RAM_BYTES)
            manager.kill()
            wait_until(lambda: has_left(linux, LEFT_BYTES))
            assert linux.guest.check("echo alive") == "alive\n"
        with attached(linux, *by(kind)):
            # What nobody saw is the driver's alone; it is taken back, and given up anew.
            ask(linux, RAM_BYTES)
            wait_until(lambda: has_left(linux, RAM_BYTES))
            check_ledger(linux, 0)
            reach(linux, LEFT_BYTES)
            reach(linux, RAM_BYTES)


def test_cycles_beside_a_hungry_workload_lose_no_byte_and_no_page(linux: LinuxQemu) -> None:
    _go_in_and_out(linux, CYCLES)


@pytest.mark.campaign
def test_twenty_cycles_lose_no_byte_and_no_page(linux: LinuxQemu) -> None:
    _go_in_and_out(linux, 20)


def _go_in_and_out(linux: LinuxQemu, cycles: int) -> None:
    with attached(linux, *by("monitor")), working(linux, WORK_BYTES):
        for _ in range(cycles):
            reach(linux, LEFT_BYTES)
            reach(linux, RAM_BYTES)
        state = client.status(linux.pid)
        assert state.observed.lost_records == state.observed.given_twice_pages == 0
        assert state.windows == 0
