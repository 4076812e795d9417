# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs by name: read from command lines, told apart from pids, shown to a terminal."""

from __future__ import annotations

import os

import pytest

from uffdballoon.errors import UsageError
from uffdballoon.model.printable import printable
from uffdballoon.vmm.qemu.naming import Named, Names, names_of, resolve

_FREE_PID = (1 << 22) - 1
"""No process has it: pids end below pid_max."""


def _vm(pid: int, name: str = "", number: str = "") -> Named:
    return Named(pid, Names(name, number))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), Names("", "")),
        (("-name", "web1"), Names("web1", "")),
        (("-name", "guest=web1,debug-threads=on"), Names("web1", "")),
        (("--name", "web1,process=x"), Names("web1", "")),
        (("-name", "debug-threads=on"), Names("", "")),
        (("-name", "web1", "-name", "debug-threads=on"), Names("web1", "")),
        (("-name", "web1", "-name", "web2"), Names("web2", "")),
        (("-id", "321", "-name", "guest-a,debug-threads=on"), Names("guest-a", "321")),
        (("-name", "guest=node,,pair 7,debug-threads=on"), Names("node,pair 7", "")),
        (("-name", "guest=a=b"), Names("a=b", "")),
        (("-name",), Names("", "")),
        (("-append", "-name", "-name", "web1"), Names("web1", "")),
        (("-name", "guest=\x1b[31mred\n[bold]"), Names("\x1b[31mred\n[bold]", "")),
    ],
)
def test_a_name_is_read_as_qemu_reads_it(arguments: tuple[str, ...], names: Names) -> None:
    assert names_of(("qemu-system-x86_64", *arguments)) == names


def test_a_name_means_the_process_of_that_vm() -> None:
    vms = [_vm(11, "web1"), _vm(12, "db"), _vm(13, "guest-a", "321")]
    assert resolve("web1", lambda: vms) == 11
    assert resolve("guest-a", lambda: vms) == resolve("id:321", lambda: vms) == 13
    assert resolve("name:db", lambda: vms) == 12
    assert resolve(str(_FREE_PID), lambda: [_vm(14, number=str(_FREE_PID))]) == 14


def test_a_pid_needs_nobody_to_have_a_name() -> None:
    assert resolve("4711", list) == 4711
    assert resolve("pid:4711", list) == 4711


def test_a_name_of_several_is_refused_with_their_pids() -> None:
    with pytest.raises(UsageError) as refused:
        resolve("web1", lambda: [_vm(11, "web1"), _vm(12, "web1")])
    assert "11, 12" in refused.value.why


def test_the_id_of_one_and_the_name_of_another_are_told_apart() -> None:
    vms = [_vm(11, "abc"), _vm(12, "x", "abc")]
    with pytest.raises(UsageError):
        resolve("abc", lambda: vms)
    assert resolve("name:abc", lambda: vms) == 11
    assert resolve("id:abc", lambda: vms) == 12


def test_a_number_is_a_pid_where_a_vm_has_it_and_how_to_be_exact_is_said() -> None:
    said: list[str] = []
    vms = [_vm(321, "a"), _vm(12, "b", "321")]
    assert resolve("321", lambda: vms, say=said.append) == 321
    assert "process 12" in said[0]
    assert "id:321" in said[0]
    assert resolve("id:321", lambda: vms) == 12


def test_a_number_that_is_a_process_of_another_program_is_refused_with_the_exact_word() -> None:
    vms = [_vm(12, "b", str(os.getpid()))]
    with pytest.raises(UsageError) as refused:
        resolve(str(os.getpid()), lambda: vms)
    assert f"id:{os.getpid()}" in refused.value.hint
    assert resolve(f"id:{os.getpid()}", lambda: vms) == 12
    assert resolve(f"pid:{os.getpid()}", lambda: vms) == os.getpid()


def test_a_name_that_nobody_has_is_refused_with_those_that_are_like_it() -> None:
    vms = [_vm(11, "web1"), _vm(12, "WEB-2"), _vm(13, "database"), _vm(14, "")]
    with pytest.raises(UsageError) as refused:
        resolve("web2", lambda: vms)
    assert "web1 (pid 11)" in refused.value.why
    assert "WEB-2 (pid 12)" in refused.value.why
    assert "database" not in refused.value.why
    assert "uffdballoon list" in refused.value.hint


@pytest.mark.parametrize("text", ["", "name:", "pid:", "pid:web1", "pid:0", "pid:9999999999"])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        resolve(text, list)


@pytest.mark.parametrize("text", ["0", "-1", "٣٢١", "9" * 5000, "\x1b]0;x\x07", "a\nb" * 5000])
def test_what_no_vm_has_is_refused_and_never_shown_as_it_is(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        resolve(text, lambda: [_vm(11, text + "x"), _vm(12, "\x1b[2J" * 9)])
    told = str(refused.value) + refused.value.why + refused.value.hint
    assert told.isprintable()
    assert len(told) < 600


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web1", "web1"),
        ("böse VM [bold]", "böse VM [bold]"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\r\t\0", "a\\nb\\r\\t\\x00"),
        ("a\\nb", "a\\\\nb"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\udcff", "\\udcff"),
        ("x" * 64, "x" * 64),
        ("x" * 10_000, "x" * 64 + "..."),
        ("\x1b" * 10_000, "\\x1b" * 16 + "..."),
    ],
)
def test_what_is_shown_is_printable_and_bounded(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.isprintable()
