# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os

import pytest

from uffdballoon.errors import UsageError
from uffdballoon.vmm.qemu import libvirt_domain
from uffdballoon.vmm.qemu.libvirt_domain import (
    _cmdline_of,
    begin_bridge,
    is_by_libvirt,
    is_domain,
    uri_of,
)

_UUID = ["-uuid", "7ca9bcf5-71f9-465c-a17f-016e94873c1d"]
# libvirt 9 passes its monitor's fd, and earlier ones a path.
_LATE = ["qemu", "-S", *_UUID, "-chardev", "socket,id=charmonitor,fd=22,server=on,wait=off"]
_EARLY = ["kvm", *_UUID, "-chardev"]
_EARLY += ["socket,id=charmonitor,path=/var/lib/libvirt/qemu/domain-1-web1/monitor.sock,server"]
_PROXMOX = ["kvm", "-id", "100", *_UUID, "-chardev", "socket,id=qmp,path=/run/100.qmp,server=on"]


@pytest.mark.parametrize(
    ("cmdline", "is_one"),
    [(_LATE, True), (_EARLY, True), (_PROXMOX, False), (["qemu"], False), ([], False)],
)
def test_a_domain_is_known_by_libvirts_own_monitor(cmdline: list[str], *, is_one: bool) -> None:
    assert is_domain(cmdline) is is_one


@pytest.mark.parametrize(
    ("path", "is_it"),
    [
        ("libvirt", True),
        ("qemu:///system", True),
        ("qemu+unix:///system?socket=/run/x", True),
        ("/run/vm/qmp", False),
        ("./libvirt", False),
        (None, False),
    ],
)
def test_libvirt_is_asked_for_by_its_word_or_an_uri(path: str | None, *, is_it: bool) -> None:
    assert is_by_libvirt(path) is is_it


def test_the_uri_is_that_of_virsh_else_of_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    assert uri_of(os.getpid(), _EARLY) == "qemu:///system"
    assert uri_of(os.getpid(), _LATE) == "qemu:///session"
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///mine")
    assert uri_of(os.getpid(), _EARLY) == "qemu:///mine"


def test_what_is_no_domain_has_no_monitor_by_libvirt() -> None:
    assert not is_domain(_cmdline_of(os.getpid()))
    with pytest.raises(UsageError, match="no domain of libvirt"):
        begin_bridge(os.getpid(), "libvirt")


def test_without_the_binding_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_domain, "lacking_modules", lambda: ["libvirt"])
    monkeypatch.setattr(libvirt_domain, "_cmdline_of", lambda _: _LATE)
    with pytest.raises(UsageError) as refused:
        begin_bridge(1, "libvirt")
    assert "uffdballoon[libvirt]" in refused.value.hint
