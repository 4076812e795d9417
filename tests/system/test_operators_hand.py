# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator types at a running attach, and what the answers say; on a real QEMU."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.command import COMMAND, Command, attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def test_several_ranges_are_taken_as_one_and_shown(guest: Qemu, tmp_path: Path) -> None:
    file = tmp_path / "ranges"
    file.write_text(f"# of the guest's agent\n{GPA + (16 << 20):#x} 64Ki\n")
    with attached(guest):
        said = _inflate(
            *(guest, "--gpa", hex(GPA), "--size", "1M"),
            *("--range", f"{GPA + (8 << 20):#x}+0x2000", "--from-file", file),
        )
        assert f"gpa {GPA:#x}-{GPA + (1 << 20):#x}, gpa 0x4800000-0x4802000, " in said
        shown = run("status", guest.pid, "--ranges").stdout
        assert "gpa 0x4000000-0x4100000\t1 MiB\n" in shown
        assert "gpa 0x4800000-0x4802000\t8 KiB\n" in shown
        assert "gpa 0x5000000-0x5010000\t64 KiB\n" in shown
        bounded = Command().ask("status", guest.pid, "--most-ranges", 1)["ranges"]
        assert bounded == {
            "ranges": [{"gpa": GPA, "size": 1 << 20}],
            "more_ranges": 2,
            "more_bytes": (64 << 10) + (8 << 10),
        }
        assert "and 2 more ranges\t" in run("status", guest.pid, "--most-ranges", 1).stdout
        assert "ranges" not in status_of(guest)


def test_a_range_of_several_that_cannot_be_leaves_all_alone(guest: Qemu, tmp_path: Path) -> None:
    file = tmp_path / "ranges"
    file.write_text("0x4000000 1M\n0x4100001 1M\n")
    with attached(guest):
        said = refused(2, "inflate", guest.pid, "--from-file", file, "--guest-agreed")
        assert f"{file}:2: " in said
        refused(
            *(2, "inflate", guest.pid, "--range", "0x4000000+1M", "--range", "0x40000000+1M"),
            "--guest-agreed",
        )
        refused(2, "inflate", guest.pid, "--range", "0x4000000+1M", "--size", "1M")
        assert status_of(guest)["ballooned_bytes"] == 0


def test_more_ranges_than_a_request_has_go_in_several_with_progress(
    guest: Qemu, tmp_path: Path
) -> None:
    file = tmp_path / "ranges"
    count = 2100
    file.write_text("".join(f"{GPA + n * 2 * PAGE_BYTES:#x} 4K\n" for n in range(count)))
    with attached(guest):
        said = _inflate(guest, "--from-file", file)
        assert f"1000 of {count} ranges are done" in said
        assert f"2000 of {count} ranges are done" in said
        assert f"and {count - 8} more" in said
        assert status_of(guest)["ballooned_bytes"] == count * PAGE_BYTES
        with file.open("a") as more:
            more.write("0x40000000 4K\n")
        said = refused(2, "inflate", guest.pid, "--from-file", file, "--guest-agreed")
        assert "this was done, and no more" in said
        deflated = run("deflate", guest.pid, "--all")
        assert f"deflated {count * PAGE_BYTES / (1 << 20):.1f} MiB of" in deflated.stderr
        assert status_of(guest)["ballooned_bytes"] == 0
        assert "deflated 0 B of 0 B" in run("deflate", guest.pid, "--all").stderr
        refused(2, "deflate", guest.pid, "--all", "--gpa", "0", "--size", "4K")


def test_a_dry_run_says_what_would_be_and_changes_nothing(guest: Qemu) -> None:
    span = GpaRange.of(GPA, 4 << 20)
    guest.guest.fill(span, 3)
    with attached(guest):
        _inflate(guest, "--gpa", hex(2 * GPA), "--size", "64K")
        asked = ("inflate", guest.pid, "--gpa", hex(GPA), "--size", str((3 << 20) + 100))
        said = run(*asked, "--dry-run").stderr
        assert f"would inflate 3 MiB of 3.0 MiB: gpa {GPA:#x}-{GPA + (3 << 20):#x}" in said
        assert "resident now: 3 MiB" in said
        assert "would break 1 more block(s)" in said
        assert "left out: 100 B" in said
        assert "nothing was changed" in said
        assert status_of(guest)["ballooned_bytes"] == 64 << 10
        assert Command().ask(*asked, "--dry-run")["would_do_bytes"] == 3 << 20
        again = run("inflate", guest.pid, "--gpa", hex(2 * GPA), "--size", "64K", "--dry-run")
        assert "already in the balloon: 64 KiB" in again.stderr
        refused(2, "inflate", guest.pid, "--gpa", "0x40000000", "--size", "4K", "--dry-run")
    assert guest.guest.verify(span, 3).bad_lines == 0


def test_events_are_chosen_by_number_time_and_kind_in_follow_as_well(guest: Qemu) -> None:
    with attached(guest):
        _inflate(guest, "--gpa", hex(GPA), "--size", "1M")
        guest.guest.touch(GpaRange.of(GPA, 3 * PAGE_BYTES), Access.WRITE)
        (last,) = run("events", guest.pid, "-n", 1, "--kind", "violation").stdout.splitlines()
        assert f"gpa {GPA + 2 * PAGE_BYTES:#x}" in last
        assert run("events", guest.pid, "--kind", "reset").stdout == ""
        since = run("events", guest.pid, "--since", last.split()[0]).stdout
        assert since.splitlines()[-1] == last
        assert run("events", guest.pid, "--since", "2100-01-01").stdout == ""
        refused(2, "events", guest.pid, "--since", "yesterday")
        with subprocess.Popen(
            [
                *(COMMAND, "events", str(guest.pid), "-n", "1", "--kind", "violation"),
                *("--follow", "--json"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as follower:
            assert follower.stdout is not None
            seen = [json.loads(follower.stdout.readline())]
            guest.monitor.execute("stop")
            guest.monitor.execute("cont")
            guest.guest.touch(GpaRange.of(GPA + (64 << 10), PAGE_BYTES), Access.WRITE)
            seen.append(json.loads(follower.stdout.readline()))
            follower.kill()
    addresses = [GPA + 2 * PAGE_BYTES, GPA + (64 << 10)]
    assert [event["gpa"] for event in seen] == addresses
    assert [event["gpa_hex"] for event in seen] == [hex(gpa) for gpa in addresses]
