# SPDX-License-Identifier: GPL-2.0-or-later
"""What `doctor --pid` says beforehand is what `attach` then does."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.command import Command
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.confinement import Confinement
from uffdballoon.lab.qemu import Memory, Qemu, QemuOptions
from uffdballoon.model.ram import Backing

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

SMALL = Memory(size_bytes=128 << 20)


def foretold(qemu: Qemu, *arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return doctor's exit code, and its probes of that process by their names."""
    told = Command().run("doctor", "--pid", qemu.pid, *arguments, "--json")
    probes = json.loads(told.stdout)["probes"]
    start = f"{qemu.pid}: "
    return told.returncode, {
        probe["name"].removeprefix(start): probe
        for probe in probes
        if probe["name"].startswith(start)
    }


def check_refused(qemu: Qemu, probe: str, *arguments: object) -> None:
    """Have doctor and attach refuse with the same exit code, for the same reason."""
    code, probes = foretold(qemu, *arguments)
    refused = Command().run("attach", qemu.pid, *arguments)
    assert refused.returncode == code != 0, refused.stderr
    (why,) = [line for line in refused.stderr.splitlines() if line.startswith("why: ")]
    assert why.removeprefix("why: ") in probes[probe]["detail"]
    assert probes[probe]["essential"]
    qemu.guest.ping()


def check_attached(qemu: Qemu, *arguments: object) -> str:
    """Have doctor say that it can be done, and do it; return what attach said."""
    code, probes = foretold(qemu, *arguments)
    assert code == 0, probes
    with Command().attached(qemu.pid, *arguments) as manager:
        assert Command().run("detach", qemu.pid).returncode == 0
        said = manager.communicate()[1]
    qemu.guest.ping()
    return said


def test_a_capability_of_another_user_namespace_is_no_privilege(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(QemuOptions(memory=SMALL, confinement=Confinement(user_namespace=True)))
    _, probes = foretold(qemu)
    assert probes["userfaultfd by"]["detail"].startswith("passed (its CAP_SYS_PTRACE is of")
    said = check_attached(qemu, "--qmp", qemu.qmp_path)
    assert "userfaultfd obtained: passed" in said


def test_ram_that_cannot_be_told_without_the_monitor_is_told_with_it(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    """Two nodes of one size: either may be the first."""
    qemu = start_qemu(QemuOptions(memory=Memory(size_bytes=128 << 20, nodes=2)))
    check_refused(qemu, "guest RAM", "--qmp", "none")
    check_attached(qemu, "--qmp", qemu.qmp_path)


def test_a_private_file_that_has_a_name_is_refused_beforehand(
    start_qemu: Callable[[QemuOptions], Qemu], tmp_path: Path
) -> None:
    template = Path("/dev/shm") / f"uffdballoon-{tmp_path.name}"  # noqa: S108
    try:
        template.write_bytes(b"")
        memory = Memory(size_bytes=128 << 20, backing=Backing.TMPFS, mem_path=str(template))
        qemu = start_qemu(QemuOptions(memory=memory))
        check_refused(qemu, "guest RAM", "--qmp", qemu.qmp_path)
    finally:
        template.unlink()


def test_a_monitor_that_another_client_holds_is_done_without(
    start_qemu: Callable[[QemuOptions], Qemu], tmp_path: Path
) -> None:
    path = tmp_path / "held"
    qemu = start_qemu(QemuOptions(memory=SMALL, extra=("-qmp", f"unix:{path},server=on,wait=off")))
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(path))
        assert other.recv(1)
        _, probes = foretold(qemu, "--qmp", path)
        assert not probes["monitor"]["ok"]
        said = check_attached(qemu, "--qmp", path)
        assert probes["monitor"]["detail"].partition(": ")[2] in said


def test_a_monitor_of_another_qemu_is_refused_beforehand(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu, other = start_qemu(QemuOptions(memory=SMALL)), start_qemu(QemuOptions(memory=SMALL))
    code, probes = foretold(qemu, "--qmp", other.qmp_path)
    assert code
    assert f"process {other.pid} listens there" in probes["guest RAM"]["detail"]
    refused = Command().run("attach", qemu.pid, "--qmp", other.qmp_path)
    assert f"process {other.pid} listens there" in refused.stderr
    other.guest.ping()


def test_a_monitor_without_a_process_is_used_wrongly() -> None:
    refused = Command().run("doctor", "--qmp", "/nowhere")
    assert refused.returncode == 2
    assert "--qmp goes with --pid" in refused.stderr
