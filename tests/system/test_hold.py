# SPDX-License-Identifier: GPL-2.0-or-later
"""A manager that dies leaves its traps to a keeper, and another one goes on with them."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.holding import (
    HOLD,
    HOLD_DIRECT,
    ask,
    check_that_all_is_let_go,
    detach,
    end,
    is_kept,
    serve,
    status,
    wait_until,
)
from tests.support.marks import REAL_QEMU
from tests.support.moments import DIRECT, OWN, OWNED, SEED
from tests.support.resources import resources_of, userfaultfd_mappings
from uffdballoon.core.keeper import take_from_keeper
from uffdballoon.daemon.runtime import keeper_path
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = REAL_QEMU


@pytest.fixture
def guest(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


def _page(index: int, count: int = 1) -> GpaRange:
    return GpaRange.of(DIRECT.start + index * PAGE_BYTES, count * PAGE_BYTES)


def _first_pages(span: GpaRange, count: int) -> GpaRange:
    return GpaRange.of(span.start, count * PAGE_BYTES)


def test_a_restarted_manager_goes_on_with_the_traps_of_a_killed_one(guest: Qemu) -> None:
    before = resources_of(guest.pid)
    with serve(guest, *HOLD_DIRECT) as first:
        assert stat.S_IMODE(keeper_path(guest.pid).stat().st_mode) == 0o600
        first.inflate(DIRECT)
        guest.guest.touch(_page(0, 3), Access.WRITE)
        end(first)
    assert userfaultfd_mappings(guest.pid) > 0
    pending = guest.guest.start_touch(_page(1, 4), Access.WRITE)  # two of them are owned again
    assert not pending.is_there(0.2)
    with serve(guest, *HOLD_DIRECT) as second:
        pending.wait()
        state = status(second)
        assert state["touches"]["violations"] == 2
        assert state["uffd_method"] == "kept"
        assert state["ballooned_bytes"] == DIRECT.size_bytes - 5 * PAGE_BYTES
        detach(second)
    check_that_all_is_let_go(guest, before)


def test_what_a_dead_manager_froze_is_judged_by_the_next(guest: Qemu) -> None:
    before = resources_of(guest.pid)
    with serve(guest, *HOLD_DIRECT, "--qmp", guest.qmp_path, "--policy", "freeze") as first:
        first.inflate(DIRECT)
        pending = guest.guest.start_touch(_page(0), Access.WRITE)
        wait_until(lambda: bool(status(first)["held"]))
        end(first)
    with serve(guest, *HOLD_DIRECT, "--policy", "observe") as second:
        pending.wait()
        assert status(second)["touches"]["violations"] == 1
        detach(second)
    check_that_all_is_let_go(guest, before)


def test_a_read_before_leaves_a_write_after_trapped(guest: Qemu) -> None:
    with serve(guest, *HOLD_DIRECT) as first:
        first.inflate(DIRECT)
        guest.guest.touch(_page(0, 8), Access.READ)
        end(first)
    with serve(guest, *HOLD_DIRECT) as second:
        guest.guest.touch(_page(0, 8), Access.WRITE)
        assert status(second)["actions"]["grant"] == 8
        detach(second)


def test_a_keeper_that_nobody_comes_for_lets_go(guest: Qemu) -> None:
    before = resources_of(guest.pid)
    with serve(guest, *HOLD_DIRECT, "--hold-for", "300ms") as manager:
        manager.inflate(DIRECT)
        end(manager)
    guest.guest.touch(_page(0), Access.WRITE)  # waits until then
    wait_until(lambda: not is_kept(guest))
    check_that_all_is_let_go(guest, before)


def test_managers_that_die_before_they_serve_do_not_extend_the_time(guest: Qemu) -> None:
    before = resources_of(guest.pid)
    with serve(guest, *HOLD_DIRECT, "--hold-for", "500ms") as manager:
        manager.inflate(DIRECT)
        end(manager)
    pending = guest.guest.start_touch(_page(0), Access.WRITE)
    while held := take_from_keeper(keeper_path(guest.pid)):
        held.keeper.close()
        os.close(held.uffd)
        os.close(held.memory)
        time.sleep(0.02)
    pending.wait()
    check_that_all_is_let_go(guest, before)


def test_a_signal_holds_and_an_attach_without_hold_ends_the_keeper(guest: Qemu) -> None:
    before = resources_of(guest.pid)
    with serve(guest, *HOLD_DIRECT) as first:
        first.inflate(DIRECT)
        end(first, signal.SIGTERM)
        assert first.status == 0
        assert "held for 30 s" in first.said
    with serve(guest, "--observer", "direct") as second:
        assert not is_kept(guest)
        guest.guest.touch(_page(0), Access.WRITE)
        assert status(second)["touches"]["violations"] == 1
        end(second)
    check_that_all_is_let_go(guest, before)


def test_a_keeper_ends_with_the_target(guest: Qemu) -> None:
    with serve(guest, *HOLD_DIRECT) as manager:
        manager.inflate(DIRECT)
        end(manager)
    guest.send_signal(signal.SIGKILL)
    guest.wait_for_exit()
    wait_until(lambda: not is_kept(guest))


def _give_up_and_die(qemu: Qemu, *arguments: object) -> None:
    """Have the guest give OWN up under a manager that is killed once it is trapped."""
    with serve(qemu, *arguments) as manager:
        qemu.guest.balloon_inflate(OWN)
        wait_until(lambda: status(manager)["ballooned_bytes"] == OWN.size_bytes)
        wait_until(lambda: status(manager)["windows"] > 0)
        end(manager)


def test_a_trace_that_goes_on_tells_what_the_guest_did_meanwhile(guest: Qemu) -> None:
    before = resources_of(guest.pid)
    half = OWN.size_bytes // 2
    taken_back = GpaRange.of(OWN.start, half)
    given_up = GpaRange.of(OWN.start + 2 * OWN.size_bytes, half)
    arguments = (*HOLD, "--observer", "trace")
    _give_up_and_die(guest, *arguments)
    guest.guest.balloon_deflate(taken_back)
    guest.guest.balloon_inflate(given_up)
    guest.guest.touch(_first_pages(given_up, 2), Access.WRITE)  # nobody traps it yet
    pending = guest.guest.start_touch(_first_pages(taken_back, 8), Access.WRITE)
    with serve(guest, *arguments) as second:
        pending.wait()
        wait_until(lambda: status(second)["observed"]["late_touches"] == 2)
        guest.guest.write(OWN.start + half, 5)
        state = status(second)
        assert state["touches"]["violations"] == 3
        assert state["observed"]["doubtful_touches"] == 0
        assert state["ballooned_bytes"] == OWN.size_bytes - 3 * PAGE_BYTES
        # What one touch filled beside it, as a part of a huge page, is zapped again.
        wait_until(lambda: ask(second, "verify")["disagreements"] == [])
        detach(second)
    guest.guest.balloon_deflate(GpaRange.of(OWN.start + half, half))
    guest.guest.balloon_deflate(given_up)
    check_that_all_is_let_go(guest, before)


def _cut_what_is_held_of_the_monitor(qemu: Qemu) -> None:
    """Take over for a moment, and end the connection to the monitor, as QEMU does."""
    held = take_from_keeper(keeper_path(qemu.pid))
    assert held is not None
    assert held.monitor is not None
    with socket.socket(fileno=held.monitor) as monitor:
        monitor.shutdown(socket.SHUT_RDWR)
    for fd in (held.uffd, held.memory, *held.trace):
        os.close(fd)
    held.keeper.close()


def test_with_resets_that_nobody_saw_pages_of_before_are_doubtful(guest: Qemu) -> None:
    arguments = (*HOLD, "--observer", "trace", "--qmp", guest.qmp_path)
    _give_up_and_die(guest, *arguments)
    _cut_what_is_held_of_the_monitor(guest)
    with serve(guest, *arguments) as second:
        state = status(second)
        assert state["ballooned_bytes"] == OWN.size_bytes
        guest.guest.touch(GpaRange.of(OWN.start, PAGE_BYTES), Access.WRITE)
        assert status(second)["touches"]["violations"] == 0
        guest.guest.balloon_deflate(OWN)
        guest.guest.balloon_inflate(OWN)
        wait_until(lambda: status(second)["ballooned_bytes"] == OWN.size_bytes)
        guest.guest.touch(GpaRange.of(OWN.start, PAGE_BYTES), Access.WRITE)
        assert status(second)["touches"]["violations"] == 1
        detach(second)
    guest.guest.balloon_deflate(OWN)
    assert userfaultfd_mappings(guest.pid) == 0
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0


def _restart(qemu: Qemu, turns: int) -> None:
    """Kill the manager in the middle of a row of writes, over and over."""
    step = DIRECT.size_bytes // PAGE_BYTES // turns
    first = serve(qemu, *HOLD_DIRECT)
    first.inflate(DIRECT)
    manager = first
    for turn in range(turns):
        pending = qemu.guest.start_touch(_page(turn * step, step), Access.WRITE)
        with manager:
            end(manager)
        manager = serve(qemu, *HOLD_DIRECT)
        pending.wait()
        state = status(manager)
        # Each page that was written to has left the balloon, and no other.
        assert state["ballooned_bytes"] == DIRECT.size_bytes - (turn + 1) * step * PAGE_BYTES
        assert state["touches"]["violations"] <= step
    with manager:
        detach(manager)
    assert userfaultfd_mappings(qemu.pid) == 0
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_restarts_amid_violations_miss_none(guest: Qemu) -> None:
    _restart(guest, 8)


@pytest.mark.campaign
def test_a_hundred_restarts_amid_violations_miss_none(guest: Qemu) -> None:
    _restart(guest, 100)
