# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP sockets as command lines name them, and whether they are free, as /proc tells."""

from __future__ import annotations

import pytest

from uffdballoon.cli.monitor_choice import choose_of, parse_qmp
from uffdballoon.errors import UsageError
from uffdballoon.model.records.target import MonitorOwner, MonitorSocket, MonitorState
from uffdballoon.vmm.qemu.monitors import (
    judge_sockets,
    named_sockets,
    parse_unix_sockets,
)

_PVE = "/var/run/qemu-server/321.qmp"
_LIBVIRT = "/var/lib/libvirt/qemu/domain-1-web1/monitor.sock"
_UNIX = f"""Num       RefCount Protocol Flags    Type St Inode Path
00000000620e881d: 00000003 00000000 00000000 0001 03 881397
000000002caa04e0: 00000002 00000000 00010000 0001 01 100 /run/free
00000000a8277218: 00000002 00000000 00010000 0001 01 200 /run/held by one
00000000a8277219: 00000003 00000000 00000000 0001 03 201 /run/held by one
00000000a8277220: 00000002 00000000 00010000 0001 01 300 {_LIBVIRT}
00000000a8277221: 00000002 00000000 00010000 0001 01 400 /run/queue
00000000a8277222: 00000003 00000000 00000000 0001 02 0 /run/queue
00000000a8277223: 00000002 00000000 00010000 0001 01 500 /run/of-another
zz
"""


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("-qmp unix:/run/q,server=on,wait=off", ["/run/q"]),
        ("-qmp unix:/run/q,server,nowait", ["/run/q"]),
        ("-qmp-pretty unix:/run/q,,a,server=on", ["/run/q,a"]),
        ("-qmp unix:/run/q,server=off", []),
        ("-qmp unix:/run/q", []),
        ("-qmp stdio", []),
        ("-qmp tcp:localhost:4444,server=on", []),
        ("-monitor unix:/run/hmp,server=on", []),
        ("-chardev socket,id=c,path=/run/q,server=on -mon chardev=c,mode=control", ["/run/q"]),
        ("-chardev socket,id=c,path=/run/q,server -mon c,mode=control,pretty=on", ["/run/q"]),
        ("-chardev socket,id=c,path=/run/q,server=on -qmp chardev:c", ["/run/q"]),
        ("-chardev socket,id=c,path=/run/q,server=on -mon chardev=c,mode=readline", []),
        ("-chardev socket,id=c,path=/run/q,server=on -device x,chardev=c", []),
        ("-chardev socket,id=c,path=/run/q,reconnect=5 -mon chardev=c,mode=control", []),
        ("-chardev socket,id=c,path=q,abstract=on,server=on -mon c,mode=control", []),
        ("-chardev socket,id=c,fd=23,server=on,wait=off -mon chardev=c,mode=control", [23]),
        ("-qmp unix:/run/a,server=on -qmp unix:/run/b,server=on", ["/run/a", "/run/b"]),
        ("-qmp", []),
    ],
)
def test_qmp_sockets_are_read_as_qemu_reads_them(line: str, named: list[str | int]) -> None:
    assert named_sockets(["qemu-system-x86_64", *line.split(" ")]) == named


def test_a_monitor_is_held_when_qemu_has_accepted_somebody() -> None:
    named: list[str | int] = [
        "/run/free",
        "/run/held by one",
        23,
        24,
        "/run/queue",
        "/run/of-another",
        "/run/none",
    ]
    links = {i: f"socket:[{i * 100}]" for i in (1, 2, 4)} | {9: "socket:[201]", 23: "socket:[300]"}
    states = {
        found.path: (found.state, found.owner)
        for found in judge_sockets(named, links, parse_unix_sockets(_UNIX))
    }
    assert states == {
        "/run/free": (MonitorState.FREE, None),
        "/run/held by one": (MonitorState.HELD, None),
        _LIBVIRT: (MonitorState.FREE, MonitorOwner.LIBVIRT),
        "/run/queue": (MonitorState.FREE, None),
    }


def test_without_its_fds_a_monitor_is_neither_free_nor_held() -> None:
    (found,) = judge_sockets(["/run/held by one", 23], None, parse_unix_sockets(_UNIX))
    assert found.state is MonitorState.UNKNOWN


def _monitor(path: str, state: MonitorState, owner: MonitorOwner | None = None) -> MonitorSocket:
    return MonitorSocket(path=path, state=state, owner=owner)


_ITS_OWN = _monitor(_PVE, MonitorState.FREE, MonitorOwner.PROXMOX)


def test_a_free_monitor_that_nobody_misses_is_used_before_one_of_the_tools() -> None:
    spare = _monitor("/run/spare", MonitorState.FREE)
    assert choose_of([_ITS_OWN, spare])[:2] == ("/run/spare", False)


def test_a_monitor_that_tools_connect_to_on_demand_is_asked_and_left() -> None:
    chosen = choose_of([_ITS_OWN])
    assert chosen[:2] == (_PVE, True)
    assert "Proxmox" in chosen.told


@pytest.mark.parametrize("state", [MonitorState.FREE, MonitorState.HELD])
def test_libvirts_own_monitor_is_never_taken(state: MonitorState) -> None:
    assert choose_of([_monitor(_LIBVIRT, state, MonitorOwner.LIBVIRT)]).path is None


def test_one_that_is_held_is_told_with_what_to_do() -> None:
    chosen = choose_of([_monitor("/run/\x1bq", MonitorState.HELD)])
    assert chosen.path is None
    assert "held by another client" in chosen.told
    assert "--qmp PATH" in chosen.told
    assert chosen.told.isprintable()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/run/q", "/run/q"),
        ("unix:/run/q,server=on,wait=off", "/run/q"),
        ("./none", "./none"),
        ("auto", "auto"),
    ],
)
def test_the_option_takes_a_path_as_qemu_does(text: str, path: str) -> None:
    assert parse_qmp(text) == path


@pytest.mark.parametrize("text", ["", "unix:", "unix:,server=on"])
def test_the_option_needs_a_path(text: str) -> None:
    with pytest.raises(UsageError):
        parse_qmp(text)
