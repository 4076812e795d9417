# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc says of a target, read from files that are written by the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from uffdballoon.errors import TargetBusyError, TargetGoneError
from uffdballoon.target import confinement
from uffdballoon.target import process as module
from uffdballoon.target.process import Target, Thread, is_vmm

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

PID = 4711
# proc_pid_stat(5): behind the name come state, ppid, ..., flags (9th), ..., starttime (22nd)
STAT = "{tid} ({comm}) S 1 1 1 0 -1 {flags} " + "0 " * 12 + "{start} 0 0\n"
STATUS = """\
Name:\tqemu-system-x86
Umask:\t0022
State:\tS (sleeping)
Tgid:\t4711
NSpid:\t4711\t7
TracerPid:\t{tracer}
Uid:\t64055\t64055\t64055\t64055
CapEff:\t00000000000000c0
NoNewPrivs:\t{privs}
Seccomp:\t{seccomp}
x86_Thread_features:\t{features}
VmLck:\t       0 kB
"""


class _Process:
    """Stands in for psutil's, which knows nothing."""

    def exe(self) -> str:
        return "/usr/bin/qemu-system-x86_64"

    def cmdline(self) -> list[str]:
        return ["qemu-system-x86_64"]


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of the target; that of the others is beside it."""
    for reader in (module, confinement):
        monkeypatch.setattr(reader, "_PROC", tmp_path)
    place = tmp_path / str(PID)
    (place / "task").mkdir(parents=True)
    (place / "fd").mkdir()
    (place / "fdinfo").mkdir()
    return place


@pytest.fixture
def target() -> Target:
    return Target(PID, -1, cast("psutil.Process", _Process()))


def put_thread(proc: Path, tid: int, *, comm: str, start: int = 100, own: str = "") -> Path:
    place = proc / "task" / str(tid)
    place.mkdir()
    (place / "comm").write_bytes(comm.encode(errors="surrogateescape") + b"\n")
    (place / "stat").write_text(STAT.format(tid=tid, comm=comm, flags=0x404040, start=start))
    (place / "status").write_text(f"Name:\t{comm}\nNSpid:\t{tid}\t{own}\n" if own else "Name:\n")
    return place


def put_status(proc: Path, **fields: object) -> None:
    values = {"tracer": 0, "privs": 0, "seccomp": 0, "features": "", **fields}
    (proc / "status").write_text(STATUS.format(**values))


@pytest.mark.parametrize(
    "comm", ["qemu-system-x86", "(sd-pam)", "a) S 1 (b", ") 1 2 3", "a b", "", "CPU 0/KVM"]
)
def test_a_thread_is_read_whatever_its_name(comm: str, proc: Path, target: Target) -> None:
    put_thread(proc, 17, comm=comm, start=123456)
    assert target.threads() == [Thread(17, comm)]
    assert target.started_ticks(17) == 123456


def test_a_name_that_is_no_utf8_is_read(proc: Path, target: Target) -> None:
    put_thread(proc, 17, comm="x")
    (proc / "task" / "17" / "comm").write_bytes(b"a\xff\n")
    assert target.threads() == [Thread(17, "a\ufffd")]


def test_a_thread_that_ends_meanwhile_is_left_out(proc: Path, target: Target) -> None:
    put_thread(proc, 17, comm="stays")
    (proc / "task" / "18").mkdir()
    assert target.threads() == [Thread(17, "stays")]
    assert target.read_of_thread(18, "stat") == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("202 0x7f 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f\n", 202),
        ("0 0x7f 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f\n", 0),
        ("running\n", None),
        ("-1 0x7ffe 0x7f\n", None),
    ],
)
def test_the_call_that_a_thread_sleeps_in(
    text: str, number: int | None, proc: Path, target: Target
) -> None:
    (put_thread(proc, 17, comm="x") / "syscall").write_text(text)
    assert target.system_call(17) == number


def test_threads_are_told_by_the_ids_that_they_have_here(proc: Path, target: Target) -> None:
    put_thread(proc, 4711, comm="main", own="7")
    put_thread(proc, 4712, comm="vcpu", own="8")
    put_thread(proc, 4713, comm="an old kernel's")
    assert target.seen_from_here({7: 0, 8: 1, 4713: 2, 9: 3}) == {4711: 0, 4712: 1, 4713: 2}


def test_a_target_that_is_gone_is_named_so(target: Target, proc: Path) -> None:
    assert not (proc / "status").exists()
    with pytest.raises(TargetGoneError, match="process 4711 ended"):
        target.confinement()
    with pytest.raises(TargetGoneError):
        target.started_ticks(99)
    with pytest.raises(TargetGoneError):
        target.access_refused()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, (False, False, 0, False)),
        ({"privs": 1, "seccomp": 2}, (True, True, 0, False)),
        ({"tracer": 99}, (False, False, 99, False)),
        ({"features": "shstk"}, (False, False, 0, True)),
        ({"features": "wrss shstk"}, (False, False, 0, True)),
        ({"features": "shstk_wrss"}, (False, False, 0, False)),
    ],
)
def test_confinement_is_what_status_says(
    fields: dict[str, object],
    told: tuple[bool, bool, int, bool],
    proc: Path,
    target: Target,
) -> None:
    put_status(proc, **fields)
    found = target.confinement()
    assert (found.uid, found.capabilities) == (64055, 0xC0)
    assert (found.no_new_privs, found.seccomp, found.tracer_pid, found.shadow_stack) == told


def test_a_kernel_without_shadow_stacks_and_seccomp_has_none(proc: Path, target: Target) -> None:
    (proc / "status").write_text("Uid:\t0\t0\t0\t0\nCapEff:\tff\nTracerPid:\t0\n")
    found = target.confinement()
    assert (found.no_new_privs, found.seccomp, found.shadow_stack) == (False, False, False)


def test_a_name_cannot_forge_what_status_says(proc: Path, target: Target) -> None:
    put_status(proc)
    text = (proc / "status").read_text()
    (proc / "status").write_text(text.replace("qemu-system-x86", "x\rCapEff: 1ff\rUid: 1 1"))
    assert (target.confinement().uid, target.confinement().capabilities) == (64055, 0xC0)


def test_namespaces_that_are_not_ours_are_named(proc: Path, target: Target) -> None:
    put_status(proc)
    for place in (proc, proc.parent / "self"):
        (place / "ns").mkdir(parents=True)
        for kind in ("mnt", "net", "pid", "user"):
            number = 2 if place == proc and kind in ("net", "pid") else 1
            (place / "ns" / kind).symlink_to(f"{kind}:[{number}]")
    assert target.confinement().foreign_namespaces == ("net", "pid")


@pytest.mark.parametrize(
    ("label", "told"), [(b"unconfined\n", "unconfined"), (b"a:svirt_t:s0\0", "a:svirt_t:s0")]
)
def test_a_security_label_is_read_without_its_end(
    label: bytes, told: str, proc: Path, target: Target
) -> None:
    put_status(proc)
    (proc / "attr").mkdir()
    (proc / "attr" / "current").write_bytes(label)
    assert target.confinement().security_label == told


@pytest.mark.parametrize(
    ("info", "is_busy"),
    [
        ("pos:\t0\npending:\t0\ntotal:\t0\nAPI:\taa:7fff:1\n", True),
        ("pos:\t0\npending:\t0\ntotal:\t0\nAPI:\taa:0:0\n", False),
        ("pos:\t0\n", False),
    ],
)
def test_a_userfaultfd_is_in_use_where_it_has_features(
    info: str, proc: Path, target: Target, *, is_busy: bool
) -> None:
    (proc / "fd" / "3").symlink_to("/dev/kvm")
    (proc / "fd" / "9").symlink_to("anon_inode:[userfaultfd]")
    (proc / "fdinfo" / "9").write_text(info)
    assert target.fds() == {3: "/dev/kvm", 9: "anon_inode:[userfaultfd]"}
    if not is_busy:
        target.refuse_if_busy()
        return
    with pytest.raises(TargetBusyError, match="uses a userfaultfd already"):
        target.refuse_if_busy()


def test_a_userfaultfd_that_is_closed_meanwhile_is_none(proc: Path, target: Target) -> None:
    (proc / "fd" / "9").symlink_to("anon_inode:[userfaultfd]")
    target.refuse_if_busy()


@pytest.mark.parametrize(
    ("exe", "cmdline", "is_it"),
    [
        ("/usr/bin/qemu-system-x86_64", (), True),
        ("/usr/bin/qemu-system-x86_64 (deleted)", (), True),
        ("/usr/libexec/qemu-kvm", (), True),
        ("/usr/bin/python3", ("/usr/bin/qemu-system-x86_64", "-m", "1G"), True),
        ("", (), False),
        ("/usr/bin/qemu-img", ("qemu-img",), False),
        ("/usr/bin/bash", ("bash", "qemu-system-x86_64"), False),
    ],
)
def test_a_qemu_is_told_by_its_program(exe: str, cmdline: tuple[str, ...], *, is_it: bool) -> None:
    assert is_vmm(exe, cmdline) is is_it
