# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator types at a running attach, and what the answers say; on a real QEMU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

GPA = 64 << 20
RAM_MIB = 192


@pytest.fixture
def guest(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=RAM_MIB << 20)))


def _inflate(qemu: Qemu, *arguments: object) -> str:
    done = run("inflate", qemu.pid, *arguments, "--guest-agreed")
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_an_inflate_says_what_was_resident_and_what_was_in_already(guest: Qemu) -> None:
    guest.guest.fill(GpaRange.of(GPA, 2 << 20), 3)
    with attached(guest):
        first = _inflate(guest, "--gpa", hex(GPA), "--size", "2M")
        assert f"gpa {GPA:#x}-{GPA + (2 << 20):#x}" in first
        assert "resident, and is not any more: 2 MiB" in first
        assert "already" not in first
        again = _inflate(guest, "--gpa", hex(GPA), "--size", "2M")
        assert "already in the balloon: 2 MiB" in again
        assert "resident" not in again
        never_used = _inflate(guest, "--gpa", hex(2 * GPA), "--size", "2M")
        assert "resident, and is not any more: none" in never_used


def test_one_size_is_told_of_one_guest(guest: Qemu) -> None:
    nominal = f"{RAM_MIB} MiB"
    listed = run("list").stdout.splitlines()
    assert any(str(guest.pid) in row and nominal in row for row in listed)
    assert f"guest RAM: {nominal}" in run("inspect", guest.pid, "--qmp", guest.qmp_path).stderr
    with attached(guest) as manager:
        assert f"guest RAM\t{nominal}\n" in run("status", guest.pid).stdout
        state = status_of(guest)
        assert state["nominal_ram_bytes"] == RAM_MIB << 20
        run("detach", guest.pid)
        assert f"guest RAM: {nominal}, gpa 0x0-" in manager.communicate()[1]


def test_a_status_names_its_manager_and_no_times_without_touches(guest: Qemu) -> None:
    with attached(guest) as manager:
        state = status_of(guest)
        assert state["manager"]["pid"] == manager.pid
        assert state["manager"]["monitor"] is True
        shown = dict(row.split("\t") for row in run("status", guest.pid).stdout.splitlines())
        assert shown["manager"].startswith(f"{manager.pid}, since 20")
        assert shown["manager"].endswith(", with a monitor")
        assert shown["answer time"] == "-"
        assert "0 B armed" in shown["windows"]
        _inflate(guest, "--gpa", hex(GPA), "--size", "2M")
        guest.guest.touch(GpaRange.of(GPA, PAGE_BYTES), Access.READ)
        shown = dict(row.split("\t") for row in run("status", guest.pid).stdout.splitlines())
        assert shown["answer time"].startswith("p50 ")
        assert "2 MiB armed" in shown["windows"]


def test_a_release_of_what_is_not_frozen_names_what_is(guest: Qemu) -> None:
    with attached(guest, "--policy", "freeze"):
        _inflate(guest, "--gpa", hex(GPA), "--size", "1M")
        assert "no thread is held" in refused(2, "release", guest.pid, "--tid", guest.pid)
        pending = guest.guest.start_touch(GpaRange.of(GPA, PAGE_BYTES), Access.WRITE)
        while not (held := status_of(guest)["held"]):
            assert not pending.is_there(0.02)
        said = refused(2, "release", guest.pid, "--tid", 1)
        assert f"{held[0]['tid']} by freeze" in said
        assert "released 1" in run("release", guest.pid, "--tid", held[0]["tid"]).stderr
        while not pending.is_there(0.02):
            pass
        assert "no touch is frozen" in run("release", guest.pid).stderr


def test_a_detach_of_what_is_not_attached_advises_no_attach() -> None:
    said = refused(1, "detach", os.getpid())
    assert "is not attached" in said
    assert "uffdballoon attach" not in said
    assert "uffdballoon list" in said


def test_a_floor_above_the_guests_ram_is_refused(guest: Qemu) -> None:
    said = refused(
        *(2, "attach", guest.pid, "--qmp", guest.qmp_path, "--contract", "cap"),
        *("--floor", "1T"),
    )
    assert "cannot stay in the balloon" in said
