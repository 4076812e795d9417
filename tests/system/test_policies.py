# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy and terms that are changed under a guest, on a real QEMU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.support.command import attached, refused, run, status_of
from tests.support.holding import HOLD_DIRECT, detach, end, serve, status, wait_until
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.microguest import PendingTouches

pytestmark = REAL_QEMU

BALLOON = GpaRange.of(64 << 20, 4 << 20)
_PATIENCE_S = 30.0


def _inflate(qemu: Qemu) -> None:
    size = BALLOON.size_bytes
    inflated = run("inflate", qemu.pid, "--gpa", BALLOON.start, "--size", size, "--guest-agreed")
    assert inflated.returncode == 0, inflated.stderr


def _pages(first: int, count: int = 1) -> GpaRange:
    return GpaRange.of(BALLOON.start + first * PAGE_BYTES, count * PAGE_BYTES)


def _touch(qemu: Qemu, page: int) -> PendingTouches:
    return qemu.guest.start_touch(_pages(page), Access.WRITE)


def _policy(qemu: Qemu, *arguments: object) -> dict[str, Any]:
    changed = run("policy", qemu.pid, *arguments, "--json")
    assert changed.returncode == 0, changed.stderr
    answer: dict[str, Any] = json.loads(changed.stdout)
    return answer


def test_after_a_freeze_is_set_the_next_touch_is_held_and_softened_it_goes_on(qemu: Qemu) -> None:
    with attached(qemu, "--policy", "observe"):
        _inflate(qemu)
        qemu.guest.touch(_pages(0), Access.WRITE)
        assert _policy(qemu, "freeze")["went_on"] == 0
        assert status_of(qemu)["policy"] == "freeze"
        pending = _touch(qemu, 1)
        wait_until(lambda: status_of(qemu)["held"])
        assert not pending.is_there()
        assert _policy(qemu, "freeze")["went_on"] == 0  # it is so already
        assert _policy(qemu, "zero-read,observe")["went_on"] == 1
        pending.wait()
        state = status_of(qemu)
        assert state["held"] == []
        assert state["touches"]["violations"] == 2
        lines = run("events", qemu.pid, "--json").stdout.splitlines()
        events = [json.loads(line) for line in lines]
        told = [event["action"] or event["kind"] for event in events]
        assert sorted(told) == ["freeze", "grant", "grant", "policy-changed", "policy-changed"]
        (first, second) = [event for event in events if event["kind"] == "policy-changed"]
        assert (first["before"]["policy"], first["after"]["policy"]) == ("observe", "freeze")
        assert second["before"] == first["after"]
        assert "freeze under told -> zero-read,observe" in run("events", qemu.pid).stdout


def test_told_becomes_cap_with_a_floor_and_told_again(qemu: Qemu) -> None:
    with attached(qemu, "--policy", "freeze"):
        _inflate(qemu)
        pending = _touch(qemu, 0)
        wait_until(lambda: status_of(qemu)["held"])
        change = _policy(qemu, "--contract", "cap", "--floor", BALLOON.size_bytes)
        assert (change["went_on"], change["below_floor"]) == (0, False)
        change = _policy(qemu, "--floor", BALLOON.size_bytes - 2 * PAGE_BYTES)
        assert (change["went_on"], change["after"]["policy"]) == (1, "freeze")
        pending.wait()
        qemu.guest.touch(_pages(1), Access.WRITE)
        assert status_of(qemu)["touches"]["granted"] == 2
        in_balloon = status_of(qemu)["ballooned_bytes"]
        assert _policy(qemu, "--floor", BALLOON.size_bytes)["below_floor"]
        state = status_of(qemu)
        assert state["contract"]["below_floor"]
        assert state["ballooned_bytes"] == in_balloon
        assert "less than the floor" in run("policy", qemu.pid).stdout
        _policy(qemu, "--contract", "told")
        assert status_of(qemu)["contract"]["kind"] == "told"
        pending = _touch(qemu, 2)
        wait_until(lambda: status_of(qemu)["held"])
        assert run("release", qemu.pid).returncode == 0
        pending.wait()


def test_what_cannot_be_set_is_refused_and_changes_nothing(qemu: Qemu) -> None:
    pid = qemu.pid
    with attached(qemu, "--policy", "zero-read,observe"):
        before = _policy(qemu)["after"]
        for wrong in (
            ("freeze,kill",),
            ("freeze", "--floor", "1M"),
            ("freeze", "--contract", "cap"),
            ("freeze", "--contract", "cap", "--floor", "1T"),
            ("freeze", "--contract", "cap", "--node-floor", "5=1M"),
        ):
            refused(2, "policy", pid, *wrong)
        assert _policy(qemu)["after"] == before
        assert "nothing to change" in run("policy", pid, "zero-read,observe").stderr
        assert run("events", pid).stdout == ""
    refused(1, "policy", pid)


def test_a_kill_that_is_set_later_ends_a_qemu_of_our_own_user(qemu: Qemu) -> None:
    with attached(qemu, "--policy", "observe") as manager:
        _inflate(qemu)
        _policy(qemu, "kill")
        _touch(qemu, 0)
        assert manager.wait(_PATIENCE_S) == 1  # the target is gone


def test_a_restarted_manager_goes_on_with_what_was_set(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    with serve(qemu, *HOLD_DIRECT, "--policy", "observe") as first:
        _inflate(qemu)
        _policy(qemu, "freeze", "--without-monitor")
        end(first)
    with serve(qemu, *HOLD_DIRECT, "--policy", "observe") as second:
        assert status(second)["policy"] == "freeze"
        pending = _touch(qemu, 0)
        wait_until(lambda: status(second)["held"])
        end(second)
    with serve(qemu, *HOLD_DIRECT, "--policy", "zero-read,observe") as third:
        pending.wait()
        assert status(third)["policy"] == "zero-read,observe"
        detach(third)
