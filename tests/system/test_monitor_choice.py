# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitors are found without connecting, used where nobody misses them, and told of."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import Command, run
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Qemu, QemuOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

PROXMOX = Path("/run/qemu-server")


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.TCG))


def _listed(qemu: Qemu) -> dict[str, str]:
    rows: list[dict[str, Any]] = Command().ask("list")
    (row,) = [row for row in rows if row["pid"] == qemu.pid]
    return {monitor["path"]: monitor["state"] for monitor in row["monitors"]}


def _greets(path: Path) -> bool:
    """Whether a client that connects now is served."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        client.connect(str(path))
        try:
            return bool(client.recv(1))
        except TimeoutError:
            return False


def test_list_tells_which_monitor_is_free_and_takes_none(tcg: Qemu) -> None:
    path = str(tcg.qmp_path)
    states = _listed(tcg)
    assert states[path] == "free"
    assert "held" in states.values()  # the lab's own
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert client.recv(1)
        assert _listed(tcg)[path] == "held"
    assert _greets(tcg.qmp_path)


def test_a_free_monitor_is_used_and_said_so(tcg: Qemu) -> None:
    with Command().attached(tcg.pid) as manager:
        assert Command().ask("status", tcg.pid)["balloon"]["actual_bytes"] is not None
        assert _listed(tcg)[str(tcg.qmp_path)] == "held"
        assert run("detach", tcg.pid).returncode == 0
        said = manager.communicate()[1]
    assert f"the monitor at {tcg.qmp_path} is free, and used" in said
    assert "the monitor is held as long as this runs" in said


def test_with_none_it_is_left_alone(tcg: Qemu) -> None:
    with Command().attached(tcg.pid, "--qmp", "none"):
        assert Command().ask("status", tcg.pid)["balloon"]["actual_bytes"] is None
        assert _greets(tcg.qmp_path)


def test_one_that_is_held_is_told_of_with_how_to_give_another(tcg: Qemu) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tcg.qmp_path))
        assert client.recv(1)
        with Command().attached(tcg.pid) as manager:
            assert run("detach", tcg.pid).returncode == 0
            said = manager.communicate()[1]
    assert "is held by another client" in said
    assert "--qmp PATH" in said


@pytest.mark.needs_root
def test_proxmoxs_monitor_is_asked_and_left(
    start_qemu: Callable[[QemuOptions], Qemu], tcg: Qemu
) -> None:
    made = not PROXMOX.exists()
    PROXMOX.mkdir(exist_ok=True)
    path = PROXMOX / f"{tcg.pid}.qmp"
    try:
        listens = ("-qmp", f"unix:{path},server=on,wait=off")
        qemu = start_qemu(QemuOptions(accel=Accel.TCG, extra=listens))
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(qemu.qmp_path))
            assert other.recv(1)
            with Command().attached(qemu.pid) as manager:
                assert _listed(qemu)[str(path)] == "free"
                assert _greets(path)
                assert run("detach", qemu.pid).returncode == 0
                said = manager.communicate()[1]
            refused = run("attach", qemu.pid, "--policy", "kill")
        assert "Proxmox" in said
        assert "by monitor of QEMU" in said
        assert refused.returncode == 2
        assert "needs the monitor" in refused.stderr
        qemu.guest.ping()
    finally:
        path.unlink(missing_ok=True)
        if made:
            PROXMOX.rmdir()
