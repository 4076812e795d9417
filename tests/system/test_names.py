# SPDX-License-Identifier: GPL-2.0-or-later
"""Verbs take a VM's name as well as its pid, and show it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Command, refused, run
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[[QemuOptions], Qemu]

pytestmark = REAL_QEMU


def _named(start_qemu: Start, name: str) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.TCG, extra=("-name", f"{name},debug-threads=on")))


@pytest.fixture
def name() -> str:
    """A name that no VM of another test's has."""
    return f"web-{os.getpid()}"


def test_every_verb_takes_the_name(start_qemu: Start, name: str) -> None:
    qemu = _named(start_qemu, f"guest={name}")
    with Command().attached(qemu.pid, "--qmp", qemu.qmp_path) as manager:
        assert f"{name}, process {qemu.pid}" in run("status", name).stdout
        assert Command().ask("status", name)["vm"] == name
        where = ("--gpa", "0x4000000", "--size", "1M")
        assert run("inflate", name, *where, "--guest-agreed").returncode == 0
        qemu.guest.touch(GpaRange.of(0x4000000, PAGE_BYTES), Access.WRITE)
        events = run("events", name, "--json").stdout.splitlines()
        assert {(e["pid"], e["vm"]) for e in map(json.loads, events)} == {(qemu.pid, name)}
        for verb in (["verify"], ["map"], ["stats"], ["events"], ["release"], ["inspect"]):
            done = run(*verb, name)
            assert done.returncode == 0, done.stderr
        assert run("deflate", f"name:{name}", *where).returncode == 0
        assert name in run("top", name, "--once").stdout
        assert run("doctor", "--pid", name).returncode == 0
        assert run("detach", name).returncode == 0
        assert manager.wait(20) == 0
    (listed,) = [vm for vm in Command().ask("list") if vm["pid"] == qemu.pid]
    assert listed["vm"] == name
    assert f"{qemu.pid}\t{name}\t" in run("list").stdout


def test_a_name_of_two_is_refused_with_both_pids(start_qemu: Start, name: str) -> None:
    pids = [_named(start_qemu, name).pid for _ in range(2)]
    said = refused(2, "attach", name)
    assert all(str(pid) in said for pid in pids)


def test_a_name_that_nobody_has_is_refused_with_one_that_is_like_it(
    start_qemu: Start, name: str
) -> None:
    qemu = _named(start_qemu, name)
    said = refused(2, "attach", f"{name}x")
    assert f"{name} (pid {qemu.pid})" in said
    assert "uffdballoon list" in said


def test_a_shell_is_offered_names_and_pids_that_it_can_take(start_qemu: Start, name: str) -> None:
    plain, hostile = _named(start_qemu, name), _named(start_qemu, f"{name}$(id)\nplain,,x")
    words = {"_UFFDBALLOON_COMPLETE": "bash_complete", "COMP_CWORD": "2"}

    def offered(begun: str) -> set[str]:
        line = f"uffdballoon attach {begun}"
        done = Command(environment={**words, "COMP_WORDS": line}).run()
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert offered(name[:4]) >= {name}
    assert not any("$" in word for word in offered(""))
    assert offered("") >= {str(plain.pid), str(hostile.pid), name}


@pytest.mark.parametrize(
    "hostile", ["\x1b[31mred\x1b]0;title\x07", "a\nerror: b\rc", "[bold]x[/bold]", "n" * 10_000]
)
def test_a_name_is_never_obeyed_by_a_terminal(start_qemu: Start, hostile: str) -> None:
    qemu = _named(start_qemu, hostile)
    (listed,) = [vm for vm in Command().ask("list") if vm["pid"] == qemu.pid]
    assert listed["vm"] == hostile
    (line,) = [ln for ln in run("list").stdout.split("\n") if ln.startswith(f"{qemu.pid}\t")]
    assert line.replace("\t", "").isprintable()
    assert len(line) < 300
    with Command().attached(qemu.pid, "--qmp", qemu.qmp_path):
        assert Command().ask("status", hostile)["vm"] == hostile
        for verb in (["status"], ["top", "--once"], ["inspect"]):
            done = run(*verb[:1], qemu.pid, *verb[1:])
            told = done.stdout + done.stderr
            assert done.returncode == 0, told
            assert told.replace("\n", "").replace("\t", "").isprintable()
            assert "\nerror" not in told
