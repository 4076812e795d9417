# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing that events are written to ends an attach, or holds its guest up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import COMMAND, Command, attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu_options import Accel, Memory, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from uffdballoon.lab.qemu import Qemu

pytestmark = REAL_QEMU
BALLOON = GpaRange.of(64 << 20, 32 << 20)
PART = GpaRange.of(BALLOON.start, 1 << 20)
PAGES = BALLOON.size_bytes // PAGE_BYTES
_PATIENCE_S = 30.0


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))


def _inflate(qemu: Qemu) -> None:
    where = ("--gpa", hex(BALLOON.start), "--size", str(BALLOON.size_bytes))
    done = run("inflate", qemu.pid, *where, "--guest-agreed")
    assert done.returncode == 0, done.stderr


def _violate(qemu: Qemu) -> None:
    qemu.guest.touch(BALLOON, Access.READ)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tiny", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_nothing_and_is_told_once(tcg: Qemu, tiny: Path) -> None:
    with attached(tcg, "--events", tiny / "events") as manager:
        _inflate(tcg)
        _violate(tcg)
        state = status_of(tcg)
        assert state["touches"]["violations"] == PAGES
        assert state["events_dropped"] == 0
        lines = (tiny / "events").read_text().splitlines()
        assert json.loads(lines[0])["gpa"] == BALLOON.start
        assert run("detach", tcg.pid).returncode == 0
        _, said = manager.communicate(timeout=_PATIENCE_S)
    assert manager.returncode == 0
    assert said.count("No space left on device") == 1
    assert "Traceback" not in said


def test_a_reader_that_has_enough_ends_nothing(tcg: Qemu) -> None:
    script = f"{COMMAND} attach {tcg.pid} --events - | head -1"
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shell:
        deadline = time.monotonic() + _PATIENCE_S
        while run("status", tcg.pid).returncode:
            assert time.monotonic() < deadline
        _inflate(tcg)
        tcg.guest.touch(PART, Access.READ)
        assert shell.stdout is not None
        assert json.loads(shell.stdout.readline())["kind"] == "violation"
        tcg.guest.touch(BALLOON, Access.READ)
        assert status_of(tcg)["loop"]["events_unwritten"]
        assert status_of(tcg)["touches"]["violations"] == PAGES
        assert run("detach", tcg.pid).returncode == 0
        _, said = shell.communicate(timeout=_PATIENCE_S)
    assert "Broken pipe" in said
    tcg.guest.ping()


def test_a_reader_that_never_reads_holds_nobody_up(tcg: Qemu) -> None:
    with attached(tcg, "--events", "-", "-v") as manager:  # both pipes are read by nobody
        _inflate(tcg)
        _violate(tcg)
        assert status_of(tcg)["touches"]["violations"] == PAGES
        assert run("detach", tcg.pid).returncode == 0
        written, _ = manager.communicate(timeout=_PATIENCE_S)
    assert json.loads(written.splitlines()[0])["gpa"] == BALLOON.start


def test_a_file_of_events_stays_below_its_limit(tcg: Qemu, tmp_path: Path) -> None:
    log = tmp_path / "events"
    with attached(tcg, "--events", log, "--events-limit", "64K"):
        _inflate(tcg)
        _violate(tcg)
        assert run("detach", tcg.pid).returncode == 0
    assert 0 < log.stat().st_size <= 64 << 10
    assert 0 < (tmp_path / "events.1").stat().st_size <= 64 << 10
    kept = [json.loads(line)["sequence"] for line in log.read_text().splitlines()]
    assert kept == list(range(kept[0], kept[-1] + 1))


def test_a_second_attach_does_not_write_to_the_same_file(
    tcg: Qemu, start_qemu: Callable[[QemuOptions], Qemu], tmp_path: Path
) -> None:
    other = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    with attached(tcg, "--events", tmp_path / "events"):
        assert "another attach" in refused(2, "attach", other.pid, "--events", tmp_path / "events")
    other.guest.ping()


def test_the_terminal_tells_what_matters_and_no_more(tcg: Qemu) -> None:
    with attached(tcg) as manager:
        _inflate(tcg)
        _violate(tcg)
        assert run("detach", tcg.pid).returncode == 0
        _, said = manager.communicate(timeout=_PATIENCE_S)
    told = [line for line in said.splitlines() if "violation" in line]
    assert f"gpa {BALLOON.start:#x}" in told[0]
    assert 2 <= len(told) < 30
    more = sum(int(line.split()[1]) for line in told[1:] if " more violation" in line)
    assert more == PAGES - 1


def test_ctrl_z_does_not_stop_a_manager(tcg: Qemu) -> None:
    with attached(tcg) as manager:
        manager.send_signal(signal.SIGTSTP)
        _inflate(tcg)
        _violate(tcg)
        assert status_of(tcg)["touches"]["violations"] == PAGES


def test_a_closed_standard_error_is_no_reason_to_end(tcg: Qemu) -> None:
    silent = Command(("sh", "-c", 'exec "$@" 0<&- 2>&-', "sh"))
    with silent.attached(tcg.pid, "--qmp", tcg.qmp_path) as manager:
        _inflate(tcg)
        _violate(tcg)
        assert status_of(tcg)["touches"]["violations"] == PAGES
        assert run("detach", tcg.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0


@pytest.mark.parametrize(
    "verb", [["doctor"], ["scenario", "list"], ["--help"], ["attach", "--help"]]
)
def test_output_that_nobody_takes_is_no_fault_of_ours(verb: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [COMMAND, *verb], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", [["doctor"], ["--help"]])
def test_output_that_cannot_be_written_is_an_error_with_a_name(verb: list[str]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [COMMAND, *verb], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the output cannot be written",
        "why: No space left on device",
        "do: write it to another place",
    ]
