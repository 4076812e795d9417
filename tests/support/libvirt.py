# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt of the test's own: its daemon, and a domain with the micro-guest in it.

The daemon runs in a mount namespace in which its directories are empty, so that
nothing of the host's libvirt is read or changed. What has to be seen from
outside, its socket and the domain's, is in a temporary directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from uffdballoon.lab.microguest import MicroGuest, find_elf

UID = 64055  # what Debian gives to libvirt-qemu
NAME = "balloon"
_PATIENCE_S = 60.0
# Debian's libvirtd wants its user to exist, whatever its configuration says; a package that only
# makes it is not worth its dependencies. A /dev/kvm that root can use and its user cannot makes it
# probe QEMU anew at every question (virQEMUCapsIsValid(), libvirt 9.0): 45 s instead of 5.
_MOUNT = f"""
cd "$0" || exit
for file in passwd group; do
    cp /etc/$file . || exit
done
echo "libvirt-qemu:x:{UID}:{UID}::/nonexistent:/usr/sbin/nologin" >> passwd
echo "libvirt-qemu:x:{UID}:" >> group
for file in passwd group; do
    mount --bind $file /etc/$file || exit
done
for at in /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p "$at" && mount -t tmpfs -o mode=755 tmpfs "$at" || exit
done
if [ -c /dev/kvm ]; then
    cp -a /dev/kvm /run/libvirt/kvm && chmod 666 /run/libvirt/kvm &&
        mount --bind /run/libvirt/kvm /dev/kvm || exit
fi
cp qemu.conf /etc/libvirt && exec "$@"
"""
# Without virtlogd, security modules and a cgroup manager; the rest is as libvirt has it.
_QEMU_CONF = """
user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ "mount" ]
seccomp_sandbox = 1
"""
_DAEMON_CONF = """
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
auth_unix_ro = "none"
"""
_DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{directory}/microguest.elf</kernel></os>
  <devices>
    <controller type='usb' model='none'/>
    <serial type='unix'><source mode='bind' path='{directory}/console'/></serial>
    <memballoon model='virtio'/>
  </devices>
{more}
</domain>
"""
_SECOND_MONITOR = """
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{directory}/qmp,server=on,wait=off'/>
  </qemu:commandline>
"""


class Libvirt:
    """A running daemon with a running domain; ``pid`` is its QEMU's.

    With ``second_monitor`` there is one at ``qmp_path``, beside libvirt's own.
    """

    guest: MicroGuest

    def __init__(self, memory_mib: int, *, second_monitor: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="uffdballoon-libvirt-"))
        self.qmp_path = self.directory / "qmp"
        self.pid = 0
        self._memory_mib = memory_mib
        self._more = _SECOND_MONITOR.format(directory=self.directory) if second_monitor else ""
        self._mounts = -1
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def uri(self) -> str:
        """Where this daemon is, as virsh is told of it."""
        return f"qemu+unix:///system?socket={self.directory}/libvirt-sock"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def virsh(self, *arguments: str) -> str:
        """Run virsh; return what it prints, fail with what it says."""
        done = subprocess.run(
            ["virsh", "--connect", self.uri, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"virsh {arguments}: {done.stderr}\n{self.log}"
        return done.stdout

    def _start(self) -> None:
        write = self.directory.joinpath
        write("qemu.conf").write_text(_QEMU_CONF)
        write("libvirtd.conf").write_text(_DAEMON_CONF.format(directory=self.directory))
        write("domain.xml").write_text(
            _DOMAIN.format(
                name=NAME,
                memory_mib=self._memory_mib,
                directory=self.directory,
                more=self._more,
            )
        )
        shutil.copyfile(find_elf(), write("microguest.elf"))
        self.directory.chmod(0o755)
        os.chown(self.directory, UID, UID)
        self._run_daemon("unshare", "--mount", "--", "sh", "-c", _MOUNT, str(self.directory))
        self.virsh("create", str(write("domain.xml")))
        self.pid = int(self._qemu_pid())
        self._wait_for(write("console"))
        self.guest = MicroGuest(write("console"))
        self.guest.wait_until_up()

    def stop_daemon(self) -> None:
        """End the daemon; its domain runs on, and start_daemon() finds it again."""
        assert self._daemon is not None
        self._mounts = os.open(f"/proc/{self._daemon.pid}/ns/mnt", os.O_RDONLY)
        self._daemon.terminate()
        self._daemon.wait(_PATIENCE_S)
        (self.directory / "libvirt-sock").unlink(missing_ok=True)

    def start_daemon(self) -> None:
        """Run the daemon again, with the files that it had."""
        self._run_daemon("nsenter", f"--mount=/proc/{os.getpid()}/fd/{self._mounts}", "--")
        os.close(self._mounts)

    def _run_daemon(self, *prefix: str) -> None:
        write = self.directory.joinpath
        command = [*prefix, "libvirtd", "--config", str(write("libvirtd.conf"))]
        command += ["--pid-file", str(write("libvirtd.pid"))]
        with write("log").open("ab") as log:
            self._daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_for(write("libvirt-sock"))

    def _wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not path.exists():
            assert self._daemon is not None
            assert self._daemon.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def _qemu_pid(self) -> str:
        assert self._daemon is not None
        root = Path(f"/proc/{self._daemon.pid}/root")
        return (root / f"run/libvirt/qemu/{NAME}.pid").read_text()

    def _stop(self) -> None:
        if "guest" in self.__dict__:
            self.guest.close()
        if self.pid:
            self.virsh("destroy", NAME)
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.kill(self._daemon.pid, signal.SIGKILL)
                self._daemon.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
