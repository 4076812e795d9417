# SPDX-License-Identifier: GPL-2.0-or-later
"""What will not hold for a guest is said alike by `doctor`, `inspect` and `attach`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.command import Command
from tests.support.marks import REAL_QEMU
from tests.support.paused import PausedQemu
from uffdballoon.errors import ExitCode
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.ram import Backing
from uffdballoon.session import look_at
from uffdballoon.target.backing import open_backing_file
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = REAL_QEMU

SHARED_RAM = Memory(size_bytes=192 << 20, backing=Backing.MEMFD, share=True)
_GET_FEATURES, _REPLY = 1, 0x5  # vhost-user's protocol
_HOLDER = """
import mmap, sys
memory = mmap.mmap(int(sys.argv[1]), 4096, mmap.MAP_SHARED)
print("mapped", flush=True)
sys.stdin.read()
"""


def said_by_all(qemu: Qemu, name: str) -> str:
    """Return the sentence of that finding, which all three verbs have to say."""
    command = Command()
    path = ("--qmp", str(qemu.qmp_path))
    findings = command.ask("inspect", qemu.pid, *path)["unsuitable"]
    (sentence,) = [f["sentence"] for f in findings if f["name"] == name]
    assert isinstance(sentence, str)
    assert sentence in command.run("inspect", qemu.pid, *path).stderr
    probes = json.loads(command.run("doctor", "--pid", qemu.pid, "--json").stdout)["probes"]
    assert [p["detail"] for p in probes if p["name"] == f"{qemu.pid}: {name}"] == [sentence]
    with command.attached(qemu.pid, *path) as manager:
        assert command.run("detach", qemu.pid).returncode == 0
        assert sentence in manager.communicate()[1]
    return sentence


@contextlib.contextmanager
def vhost_user_peer(path: Path) -> Iterator[None]:
    """Serve as the other end of a vhost-user device, as far as QEMU asks at its start."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, struct.error):
            while True:
                request, _, size = struct.unpack("<III", connection.recv(12, socket.MSG_WAITALL))
                connection.recv(size, socket.MSG_WAITALL) if size else None
                if request == _GET_FEATURES:
                    connection.sendall(struct.pack("<IIIQ", request, _REPLY, 8, 1 << 32))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.close()


def test_a_process_that_maps_the_memory_is_found(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=SHARED_RAM))
    with Target.open(qemu.pid) as target:
        looked = look_at(target, str(qemu.qmp_path))
        assert looked.unsuitable == []
        backing = open_backing_file(qemu.pid, looked.layout.blocks[0])
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(backing.fd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[backing.fd],
    ) as holder:
        os.close(backing.fd)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mapped\n"
        assert f"process {holder.pid}" in said_by_all(qemu, "shared-elsewhere")
        holder.communicate()
    qemu.guest.ping()


def test_a_guest_whose_memory_others_have_a_copy_of_is_refused() -> None:
    memory = Path(f"/dev/shm/uffdballoon-template-{os.getpid()}")  # noqa: S108
    ram = f"memory-backend-file,id=r,size=64M,mem-path={memory}"
    arguments = ("-m", "64", "-machine", "memory-backend=r", "-object")
    command = Command()
    try:
        with PausedQemu(*arguments, f"{ram},share=on") as qemu:
            for shared in ("off", "on"):
                with PausedQemu(*arguments, f"{ram},share={shared}") as other:
                    attach = command.run("attach", qemu.pid, "--qmp", qemu.qmp_path)
                    assert attach.returncode == ExitCode.UNSUPPORTED
                    assert f"process {other.pid}" in attach.stderr
                    assert "--allow shared-elsewhere" in attach.stderr
                    doctor = command.run("doctor", "--pid", qemu.pid)
                    assert doctor.returncode == ExitCode.UNSUPPORTED
            with command.attached(qemu.pid, "--qmp", qemu.qmp_path):
                assert command.run("detach", qemu.pid).returncode == 0
    finally:
        memory.unlink()


def test_doctor_refuses_ram_that_attach_refuses(tmp_path: Path) -> None:
    command = Command()
    dimm = ("-m", "64M,slots=2,maxmem=1G", "-object", "memory-backend-ram,id=d,size=64M")
    with PausedQemu(*dimm, "-device", "pc-dimm,memdev=d") as qemu:
        _refuse_alike(command, qemu)
        path = ("--qmp", str(qemu.qmp_path))
        assert command.run("doctor", "--pid", qemu.pid, *path).returncode == 0
    with PausedQemu("-m", "64", "-mem-path", str(tmp_path)) as qemu:
        _refuse_alike(command, qemu)
    template = Path(f"/dev/shm/uffdballoon-private-{os.getpid()}")  # noqa: S108
    backend = f"memory-backend-file,id=r,size=64M,mem-path={template}"
    try:
        with PausedQemu("-m", "64", "-M", "memory-backend=r", "-object", backend) as qemu:
            _refuse_alike(command, qemu)
    finally:
        template.unlink()


def _refuse_alike(command: Command, qemu: PausedQemu) -> None:
    attach = command.run("attach", qemu.pid, "--qmp", "none")
    doctor = command.run("doctor", "--pid", qemu.pid, "--qmp", "none", "--json")
    assert attach.returncode == doctor.returncode == ExitCode.UNSUPPORTED
    (ram,) = (p for p in json.loads(doctor.stdout)["probes"] if "guest RAM" in p["name"])
    assert not ram["ok"]
    (why,) = (line for line in attach.stderr.splitlines() if line.startswith("why:"))
    assert why.removeprefix("why:").strip() in ram["detail"]


def test_a_vhost_user_device_is_told_of(
    start_qemu: Callable[[QemuOptions], Qemu], tmp_path: Path
) -> None:
    path = tmp_path / "peer"
    with vhost_user_peer(path):
        extra = (
            *("-chardev", f"socket,id=peer,path={path}"),
            *("-netdev", "vhost-user,id=net0,chardev=peer"),
            *("-device", "virtio-net-pci,netdev=net0,romfile="),
        )
        qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=SHARED_RAM, extra=extra))
        assert "vhost-user net0" in said_by_all(qemu, "shared-elsewhere")


def test_locked_memory_is_told_of(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    options = QemuOptions(memory=Memory(size_bytes=128 << 20), extra=("-overcommit", "mem-lock=on"))
    qemu = start_qemu(options)
    assert "locked" in said_by_all(qemu, "locked")
    assert Command().ask("inspect", qemu.pid)["locked_bytes"] >= 128 << 20


def test_inspect_shows_threads_and_confinement(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    qemu = start_qemu(QemuOptions(run_as=65534, name_threads=True, processors=2))
    said = Command().run("inspect", qemu.pid).stderr
    (vcpus,) = [line for line in said.splitlines() if "vCPU threads:" in line]
    assert "is vCPU 0" in vcpus
    assert f"{qemu.pid} qemu-system-x86" in said
    for shown in ("uid 65534", "capabilities: none", "seccomp on", "security label: "):
        assert shown in said
    confined = Command().ask("inspect", qemu.pid)["confinement"]
    assert (confined["capabilities"], confined["capability_names"]) == (0, [])
