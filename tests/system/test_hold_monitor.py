# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor that nobody reads for a while: the next manager goes on with its connection."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.holding import (
    HOLD,
    ask,
    check_that_all_is_let_go,
    detach,
    end,
    serve,
    status,
    wait_until,
)
from tests.support.marks import REAL_QEMU
from tests.support.moments import OWN, OWNED, SEED
from tests.support.resources import resources_of, userfaultfd_mappings
from uffdballoon.errors import GuestSilentError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.forked import ForkedManager

pytestmark = REAL_QEMU

_LATER = GpaRange.of(OWN.start + 2 * OWN.size_bytes, OWN.size_bytes)
"""What the guest gives up after a reset."""
_TAKEN_OVER = "connection to the monitor taken over"


@pytest.fixture
def guest(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


def _arguments(qemu: Qemu) -> tuple[object, ...]:
    return (*HOLD, "--observer", "trace", "--qmp", qemu.qmp_path)


def _pages(span: GpaRange, count: int) -> GpaRange:
    return GpaRange.of(span.start, count * PAGE_BYTES)


def _give_up(manager: ForkedManager, qemu: Qemu, span: GpaRange) -> None:
    qemu.guest.balloon_inflate(span)
    wait_until(lambda: status(manager)["ballooned_bytes"] == span.size_bytes)
    wait_until(lambda: status(manager)["windows"] > 0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_pages_of_before_are_held_to_their_word(guest: Qemu, how: signal.Signals) -> None:
    before = resources_of(guest.pid)
    arguments = _arguments(guest)
    with serve(guest, *arguments) as first:
        _give_up(first, guest, OWN)
        end(first, how)
    pending = guest.guest.start_touch(_pages(OWN, 8), Access.WRITE)
    assert not pending.is_there(0.2)
    with serve(guest, *arguments) as second:
        pending.wait()
        assert _TAKEN_OVER in second.said
        state = status(second)
        assert state["touches"]["violations"] == 8
        assert state["observed"]["doubtful_touches"] == 0
        assert state["ballooned_bytes"] == OWN.size_bytes - 8 * PAGE_BYTES
        assert state["balloon"]["unaccounted_bytes"] == 8 * PAGE_BYTES
        guest.guest.touch(GpaRange.of(OWN.start + 8 * PAGE_BYTES, PAGE_BYTES), Access.WRITE)
        assert status(second)["touches"]["violations"] == 9
        detach(second)
    guest.guest.balloon_deflate(OWN)
    check_that_all_is_let_go(guest, before)
    assert _is_free(guest)


def _is_free(qemu: Qemu) -> bool:
    """Tell whether the monitor takes a client again, for which it must have lost the last."""
    with serve(qemu, "--qmp", qemu.qmp_path) as manager:
        actual = status(manager)["balloon"]["actual_bytes"]
        detach(manager)
    return actual is not None


@pytest.mark.parametrize("with_path", [True, False], ids=["with", "without"])
def test_a_reset_that_nobody_read_empties_the_balloon_of_before(
    guest: Qemu, *, with_path: bool
) -> None:
    arguments = _arguments(guest)
    with serve(guest, *arguments) as first:
        _give_up(first, guest, OWN)
        end(first)
    guest.guest.reset()
    guest.guest.balloon_inflate(_LATER)
    guest.guest.touch(_pages(_LATER, 2), Access.WRITE)  # nobody traps it yet
    pending = guest.guest.start_touch(_pages(OWN, 4), Access.WRITE)
    with serve(guest, *(arguments if with_path else arguments[:-2])) as second:
        assert _TAKEN_OVER in second.said
        pending.wait()
        wait_until(lambda: status(second)["observed"]["late_touches"] == 2)
        guest.guest.touch(GpaRange.of(_LATER.start + 8 * PAGE_BYTES, PAGE_BYTES), Access.WRITE)
        guest.guest.touch(_pages(OWN, 8), Access.WRITE)
        state = status(second)
        assert state["touches"]["violations"] == 3
        assert state["observed"]["doubtful_touches"] == 0
        assert state["ballooned_bytes"] == _LATER.size_bytes - 3 * PAGE_BYTES
        wait_until(lambda: ask(second, "verify")["disagreements"] == [])
        detach(second)
    guest.guest.balloon_deflate(_LATER)
    assert userfaultfd_mappings(guest.pid) == 0
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0


def _is_up(qemu: Qemu) -> bool:
    """Ask; what a guest is asked before its reset is lost."""
    try:
        qemu.guest.wait_until_up(timeout_s=1.0)
    except GuestSilentError:
        return False
    return True


def test_a_reset_that_waited_for_a_touch_is_seen(guest: Qemu) -> None:
    """QEMU stops its processors for it, and says nothing as long as one of them is frozen."""
    arguments = _arguments(guest)
    with serve(guest, *arguments) as first:
        _give_up(first, guest, OWN)
        end(first)
    pending = guest.guest.start_touch(_pages(OWN, 1), Access.WRITE)
    assert not pending.is_there(0.2)
    asked = threading.Thread(target=guest.monitor.execute, args=("system_reset",))
    asked.start()  # its answer waits, too
    with serve(guest, *arguments) as second:
        assert "Resets of the guest are seen" in second.said
        asked.join()
        wait_until(lambda: _is_up(guest))
        guest.guest.touch(_pages(OWN, 8), Access.WRITE)
        state = status(second)
        assert state["touches"]["violations"] == 1  # that of before the reset
        assert state["ballooned_bytes"] == 0
        guest.guest.balloon_inflate(_LATER)
        wait_until(lambda: status(second)["windows"] > 0)
        guest.guest.touch(_pages(_LATER, 1), Access.WRITE)
        wait_until(lambda: status(second)["touches"]["violations"] == 2)
        end(second)
    with serve(guest, *arguments) as third:
        assert _TAKEN_OVER in third.said
        guest.guest.touch(_pages(_LATER, 2), Access.WRITE)
        state = status(third)
        assert state["touches"]["violations"] == 1
        assert state["observed"]["doubtful_touches"] == 0
        detach(third)
    guest.guest.balloon_deflate(_LATER)
    assert userfaultfd_mappings(guest.pid) == 0
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0
