# SPDX-License-Identifier: GPL-2.0-or-later
"""The command itself, as a process, on a real QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import COMMAND, attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from tests.support.resources import becomes, resources_of
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injector import Injector, RemoteThread
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = REAL_QEMU

GPA = 64 << 20
_PATIENCE_S = 20.0


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))


def test_the_main_job_from_attach_to_detach(qemu: Qemu, tmp_path: Path) -> None:
    log = tmp_path / "events"
    before = resources_of(qemu.pid)
    with attached(qemu, "--events", log) as manager:
        path = socket_path(qemu.pid)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        done = run("inflate", qemu.pid, "--gpa", hex(GPA), "--size", "0x400000", "--guest-agreed")
        assert done.returncode == 0, done.stderr
        assert f"4 MiB of 4 MiB: gpa {GPA:#x}-{GPA + (4 << 20):#x}" in done.stderr
        qemu.guest.touch(GpaRange.of(GPA, 3 * PAGE_BYTES), Access.READ)
        state = status_of(qemu)
        assert state["ballooned_bytes"] == state["reclaimed_bytes"] == 4 << 20
        assert state["touches"]["violations"] == 3
        assert set(state) >= {
            *("pid", "state", "uffd_method", "observer", "contract", "policy", "ram_bytes"),
            *("ballooned_bytes", "reclaimed_bytes", "windows", "vmas", "touches", "actions"),
            *("inflated_pages_total", "deflated_pages_total", "broken_blocks"),
            *("events_dropped", "latency_ns", "stopped_us"),
        }
        shown = [json.loads(line) for line in run("events", qemu.pid, "--json").stdout.splitlines()]
        assert [event["gpa"] for event in shown] == [GPA + i * PAGE_BYTES for i in range(3)]
        assert [json.loads(line) for line in log.read_text().splitlines()] == shown
        assert run("deflate", qemu.pid, "--gpa", hex(GPA), "--size", "4M").returncode == 0
        assert status_of(qemu)["ballooned_bytes"] == 0
        assert run("detach", qemu.pid).returncode == 0
        assert manager.wait(_PATIENCE_S) == 0
        assert not path.exists()
    qemu.guest.ping()
    assert becomes(qemu.pid, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_detaches_cleanly(tcg: Qemu, number: signal.Signals) -> None:
    with attached(tcg) as manager:
        manager.send_signal(number)
        assert manager.wait(_PATIENCE_S) == 0
    tcg.guest.ping()


def test_the_end_of_the_target_ends_the_manager_and_is_said(tcg: Qemu) -> None:
    with attached(tcg) as manager:
        tcg.send_signal(signal.SIGKILL)
        _, said = manager.communicate(timeout=_PATIENCE_S)
        assert manager.returncode == 1
        assert f"process {tcg.pid} ended" in said


def test_fail_on_violation_ends_with_code_5(tcg: Qemu) -> None:
    with attached(tcg, "--fail-on-violation") as manager:
        run("inflate", tcg.pid, "--gpa", hex(GPA), "--size", "1M", "--guest-agreed")
        tcg.guest.touch(GpaRange.of(GPA, PAGE_BYTES), Access.WRITE)
        assert manager.wait(_PATIENCE_S) == 5
    tcg.guest.ping()


def test_who_follows_is_shown_the_events_past_and_then_those_that_come(tcg: Qemu) -> None:
    pages = [GPA, GPA + PAGE_BYTES]
    with attached(tcg):
        run("inflate", tcg.pid, "--gpa", hex(GPA), "--size", "1M", "--guest-agreed")
        tcg.guest.touch(GpaRange.of(pages[0], PAGE_BYTES), Access.WRITE)
        assert len(run("events", tcg.pid).stdout.splitlines()) == 1
        with subprocess.Popen(
            [COMMAND, "events", str(tcg.pid), "--follow", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        ) as follower:
            assert follower.stdout is not None
            seen = [json.loads(follower.stdout.readline())]
            tcg.guest.touch(GpaRange.of(pages[1], PAGE_BYTES), Access.WRITE)
            seen.append(json.loads(follower.stdout.readline()))
            follower.kill()
    assert [(event["kind"], event["gpa"]) for event in seen] == [("violation", at) for at in pages]


def test_a_second_manager_is_refused_and_a_dead_one_is_replaced(tcg: Qemu) -> None:
    with attached(tcg) as manager:
        assert str(manager.pid) in refused(1, "attach", tcg.pid)
        manager.kill()
        manager.wait()
        assert socket_path(tcg.pid).exists()
    with attached(tcg):
        assert status_of(tcg)["state"] == "attached"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ("--gpa", "zz", "--size", "4M")),
        (2, ("--gpa", "0x4000000", "--size", "lots")),
        (2, ("--gpa", "0x4000000", "--size", "0")),
        (2, ("--gpa", "0x4000001", "--size", "4095")),
        (2, ("--gpa", "0xfff00000000", "--size", "4M")),
        (2, ("--gpa", "0x4000000", "--size", "1T")),
        (2, ("--gpa", "0x4000000", "--size", "1M", "--granule", "thp")),
        (2, ("--gpa", "99999999999999999999", "--size", "1M")),
        (2, ("--gpa", "4000000", "--size", "1M")),  # 0x4000000 was meant
        (2, ("--gpa", "0x4001000", "--size", "4M", "--granule", "thp")),
        (2, ("--gpa", "0x4000000", "--size", "\N{ARABIC-INDIC DIGIT SIX}4M")),
    ],
)
def test_a_range_that_cannot_be_is_refused_and_nothing_is_taken(
    tcg: Qemu, code: int, arguments: tuple[str, ...]
) -> None:
    tcg.guest.fill(GpaRange.of(GPA, 1 << 20), 3)
    with attached(tcg):
        refused(code, "inflate", tcg.pid, *arguments, "--guest-agreed")
        assert status_of(tcg)["ballooned_bytes"] == 0
    assert tcg.guest.verify(GpaRange.of(GPA, 1 << 20), 3).bad_lines == 0


def test_without_the_guests_word_nothing_is_taken(tcg: Qemu) -> None:
    with attached(tcg):
        said = refused(2, "inflate", tcg.pid, "--gpa", hex(GPA), "--size", "1M")
        assert "--guest-agreed" in said
        assert status_of(tcg)["ballooned_bytes"] == 0


def test_a_range_across_the_pci_hole_is_refused(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    memory = Memory(size_bytes=5 << 30)
    big = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory, balloon=False))
    with attached(big):
        said = refused(
            2,
            *("inflate", big.pid, "--gpa", hex(3 << 30 - 1), "--size", "2G", "--guest-agreed"),
        )
        assert "0x100000000" in said


def test_what_is_no_target_is_refused_by_name() -> None:
    refused(1, "attach", 4194303)
    refused(1, "attach", os.getpid())
    refused(1, "inspect", os.getpid())
    refused(1, "status", os.getpid())
    assert run("attach", "zero").returncode == 2


def test_a_qemu_that_is_exiting_is_named_gone(tcg: Qemu) -> None:
    tcg.send_signal(signal.SIGKILL)
    tcg.wait_for_exit()
    refused(1, "attach", tcg.pid)


def test_a_traced_target_is_refused_untouched(tcg: Qemu) -> None:
    tracer = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", "-p", str(tcg.pid)], stderr=subprocess.DEVNULL
    )
    try:
        while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{tcg.pid}/status").read_text():
            assert tracer.poll() is None
        assert str(tracer.pid) in refused(1, "attach", tcg.pid)
    finally:
        tracer.kill()
        tracer.wait()
    tcg.guest.ping()


def test_a_target_that_uses_a_userfaultfd_itself_is_refused(tcg: Qemu) -> None:
    def open_one(remote: RemoteThread) -> int:
        fd = remote.call(arch.USERFAULTFD, os.O_CLOEXEC)
        at = remote.scratch(64)
        remote.write(at, struct.pack("<QQQ", 0xAA, 0, 0))  # struct uffdio_api
        assert remote.call(arch.IOCTL, fd, 0xC018AA3F, at) == 0  # UFFDIO_API
        return fd

    with Target.open(tcg.pid) as target, Injector(target) as injector:
        injector.run(open_one)
    before = resources_of(tcg.pid)
    said = refused(1, "attach", tcg.pid)
    assert "userfaultfd already" in said
    assert becomes(tcg.pid, before)


def test_ram_that_another_userfaultfd_holds_is_refused_and_nothing_is_lost(
    tcg: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for another program, which knows nothing of claims.
    monkeypatch.setattr("uffdballoon.session.attachment.Claim", contextlib.nullcontext)
    span = GpaRange.of(GPA, 2 << 20)
    tcg.guest.fill(span, 3)
    with Session(SessionOptions(pid=tcg.pid)) as holder:
        holder.inflate(GpaRange.of(GPA + (4 << 20), 4096), Granule.SMALL, guest_agreed=True)
        with attached(tcg):
            said = refused(
                1, "inflate", tcg.pid, "--gpa", hex(GPA), "--size", "8M", "--guest-agreed"
            )
            assert "another userfaultfd" in said
            assert status_of(tcg)["ballooned_bytes"] == 0
            assert status_of(tcg)["windows"] == 0
    assert tcg.guest.verify(span, 3).bad_lines == 0


def test_without_permission_the_error_says_what_is_lacking(tcg: Qemu) -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", COMMAND]
    done = subprocess.run(
        [*command, "attach", str(tcg.pid)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if "Permission denied" in done.stderr and "error:" not in done.stderr:
        pytest.fail(f"the other user cannot even start the command: {done.stderr}")
    assert done.returncode == 3, done.stderr
    assert "CAP_SYS_PTRACE" in done.stderr
    tcg.guest.ping()


def test_doctor_says_that_the_main_job_can_be_done_here(tcg: Qemu) -> None:
    done = run("doctor", "--pid", tcg.pid, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["exit_code"] == 0


def test_list_shows_the_guest(tcg: Qemu) -> None:
    rows = json.loads(run("list", "--json").stdout)
    assert [row["ram_bytes"] for row in rows if row["pid"] == tcg.pid] == [192 << 20]
