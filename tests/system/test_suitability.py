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
from typing import TYPE_CHECKING

import pytest

from tests.support.manager import Command
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.ram import Backing
from uffdballoon.session import look_at
from uffdballoon.target.backing import open_backing_file
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_qemu,
    pytest.mark.needs_userfaultfd,
    pytest.mark.needs_ptrace,
]

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
