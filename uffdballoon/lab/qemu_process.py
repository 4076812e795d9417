# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU process, whatever is in it: started, watched, ended."""

from __future__ import annotations

import abc
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import LabError, QmpError
from uffdballoon.lab.confinement import make_memory_cgroup, remove_cgroup
from uffdballoon.lab.left_behind import owned_environment
from uffdballoon.lab.monitor import Monitor

if TYPE_CHECKING:
    from uffdballoon.lab.qemu_options import QemuOptions

_EXIT_TIMEOUT_S = 30.0

# Kills QEMU when whoever started it has ended, in whatever way: its pipe then reads end-of-file.
_REAPER = 'read -r _; kill -KILL "$1"'


class QemuProcess(abc.ABC):
    """One QEMU process; a context manager that ends it.

    ``qmp_path`` is a monitor that nobody uses: give it to what is shown or tested. ``monitor``
    is another one, for oneself. Subclasses put a guest in it and connect to its console.
    """

    monitor: Monitor

    def __init__(self, options: QemuOptions) -> None:
        self.options = options
        self.directory = Path(tempfile.mkdtemp(prefix="uffdballoon-lab-"))
        self.qmp_path = self.directory / "qmp"
        self.console_path = self.directory / "console"
        self._monitor_path = self.directory / "monitor"
        self._log_path = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._cgroup: Path | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._pid, "it was not started"
        return self._pid

    @property
    def log(self) -> str:
        """What QEMU wrote to its standard output and error."""
        return self._log_path.read_text(errors="replace")

    def start(self) -> None:
        """Start QEMU and wait until the guest answers; raise LabError when it does not."""
        confinement = self.options.confinement
        uid = self.options.run_as if self.options.run_as is not None else confinement.uid
        if uid is not None:
            os.chown(self.directory, uid, uid)
        with Listeners() as listeners:
            command = [*self._arguments(listeners), *self._monitor_arguments(listeners)]
            self._process = self._spawn(self._confine(command), listeners.numbers)
            self._pid = self._process.pid
        if confinement.forks:
            self._pid = _only_child(self._process)
        self._reaper = _start_reaper(self.pid)
        try:
            self.monitor = Monitor(self._monitor_path)
            self._connect()
        except (LabError, QmpError, OSError) as error:
            raise LabError(
                "QEMU does not come up",
                why=self._last_words() or str(error),
                hint=f"it was started as: {' '.join(command)}",
            ) from error

    def stop(self) -> None:
        """Kill QEMU, whatever it is doing, and remove what it left."""
        for connection in ("guest", "monitor"):
            if connection in self.__dict__:
                self.__dict__.pop(connection).close()
        if self._process is not None and self._process.poll() is None:
            os.kill(self._pid, signal.SIGKILL)  # before its parent, which ends with it
        for process in (self._process, self._reaper):
            if process is not None:
                process.kill()
                process.wait()
        if self._cgroup is not None:
            remove_cgroup(self._cgroup)
            self._cgroup = None
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def is_running(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def wait_for_exit(self, timeout_s: float = _EXIT_TIMEOUT_S) -> int:
        """Wait until QEMU ends by itself; return its exit status, negative for a signal.

        In a pid namespace it is that of unshare(1), which says 1 for a SIGKILL (util-linux 2.38).
        """
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError("QEMU does not end", why="it was expected to", pid=self.pid) from None

    def send_signal(self, number: signal.Signals) -> None:
        if self.is_running():
            os.kill(self.pid, number)

    @abc.abstractmethod
    def _arguments(self, listeners: Listeners) -> list[str]:
        """Build the command line, all but the monitors."""

    @abc.abstractmethod
    def _connect(self) -> None:
        """Set ``guest``, which has close(), and wait until it answers."""

    def _last_words(self) -> str:
        """Return what was said before it did not come up."""
        return self.log.strip()

    def _install(self, source: Path, name: str) -> Path:
        """Put a file where any uid can read it."""
        return self._write(name, source.read_bytes())

    def _write(self, name: str, content: bytes) -> Path:
        written = self.directory / name
        written.write_bytes(content)
        written.chmod(0o644)
        return written

    def _monitor_arguments(self, listeners: Listeners) -> list[str]:
        arguments = []
        for name, path in (("qmp", self.qmp_path), ("monitor", self._monitor_path)):
            arguments += ["-chardev", unix_server(name, listeners.listen(path))]
            arguments += ["-mon", f"chardev={name},mode=control"]
        return arguments

    def _confine(self, command: list[str]) -> list[str]:
        confinement = self.options.confinement
        if confinement.memory_limit_bytes is not None:
            name = f"{self.directory.name}-{os.getpid()}"
            self._cgroup = make_memory_cgroup(name, confinement.memory_limit_bytes)
        return confinement.wrap(command, self._cgroup)

    def _spawn(self, command: list[str], inherited: list[int]) -> subprocess.Popen[bytes]:
        uid = self.options.run_as
        try:
            with self._log_path.open("wb") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=inherited,
                    env=owned_environment(),
                    user=uid,
                    group=uid,
                    extra_groups=None if uid is None else _kvm_groups(),
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            raise LabError(
                f"There is no {command[0]}",
                why="QEMU is not installed",
                hint="apt-get install qemu-system-x86",
            ) from error


class Listeners:
    """Sockets that listen already when QEMU gets them, so that nobody has to wait for them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._sockets:
            listener.close()

    @property
    def numbers(self) -> list[int]:
        return [listener.fileno() for listener in self._sockets]

    def listen(self, path: Path) -> int:
        listener = socket.socket(socket.AF_UNIX)
        self._sockets.append(listener)
        listener.bind(str(path))
        listener.listen()
        return listener.fileno()


def unix_server(name: str, number: int) -> str:
    """Describe a character device that serves on an inherited socket."""
    return f"socket,id={name},fd={number},server=on,wait=off"


def _start_reaper(pid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", _REAPER, "reaper", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # not to be interrupted together with its parent
    )


def _only_child(parent: subprocess.Popen[bytes]) -> int:
    """Wait until a process that starts another one has; return the pid that we see."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not (pids := children.read_text().split()):
        if parent.poll() is not None:
            raise LabError("QEMU was not started", why=f"{parent.args!r} ended")
        time.sleep(0.001)
    return int(pids[0])


def _kvm_groups() -> list[int]:
    try:
        status = Path("/dev/kvm").stat()
    except FileNotFoundError:
        return []
    return [status.st_gid] if stat.S_IMODE(status.st_mode) & stat.S_IRGRP else []
