# SPDX-License-Identifier: GPL-2.0-or-later
"""Start real QEMU processes with the micro-guest in them, and see to their end."""

from __future__ import annotations

import enum
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import LabError
from uffdballoon.lab.microguest import MicroGuest, find_elf
from uffdballoon.lab.monitor import Monitor
from uffdballoon.model.ram import Backing

if TYPE_CHECKING:
    import signal
    from types import TracebackType

_EXIT_TIMEOUT_S = 30.0
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# Kills QEMU when whoever started it has ended, in whatever way: its pipe then reads end-of-file.
_REAPER = 'read -r _; kill -KILL "$1"'


class Accel(enum.Enum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The guest's RAM.

    Without ``backing`` it is plain ``-m``; with it, a memory-backend object of that kind for
    each NUMA node. ``mem_path`` is the directory of a TMPFS or HUGETLBFS backing; without it
    TMPFS is /dev/shm and HUGETLBFS an anonymous file of huge pages. ``max_bytes`` and ``slots``
    leave room for DIMMs.
    """

    size_bytes: int = 128 << 20
    backing: Backing | None = None
    share: bool = False
    prealloc: bool = False
    nodes: int = 1
    mem_path: str | None = None
    slots: int = 0
    max_bytes: int = 0

    def arguments(self) -> list[str]:
        room = f",slots={self.slots},maxmem={self.max_bytes}B" if self.slots else ""
        arguments = ["-m", f"size={self.size_bytes}B{room}"]
        if self.backing is None and self.nodes == 1:
            return arguments
        for node in range(self.nodes):
            arguments += ["-object", self.backend(f"ram{node}", self.size_bytes // self.nodes)]
        if self.nodes == 1:
            return [*arguments, "-machine", "memory-backend=ram0"]
        for node in range(self.nodes):
            arguments += ["-numa", f"node,nodeid={node},memdev=ram{node}"]
        return arguments

    def backend(self, name: str, size_bytes: int) -> str:
        """Describe one memory-backend object, for -object."""
        share, prealloc = _switch(on=self.share), _switch(on=self.prealloc)
        return f"{self._kind()},id={name},size={size_bytes}B,share={share},prealloc={prealloc}"

    def _kind(self) -> str:
        match self.backing:
            case Backing.MEMFD:
                return "memory-backend-memfd"
            case Backing.TMPFS:
                return f"memory-backend-file,mem-path={self.mem_path or '/dev/shm'}"  # noqa: S108
            case Backing.HUGETLBFS if self.mem_path:
                return f"memory-backend-file,mem-path={self.mem_path}"
            case Backing.HUGETLBFS:
                return "memory-backend-memfd,hugetlb=on,hugetlbsize=2M"
            case _:
                return "memory-backend-ram"


@dataclass(frozen=True, kw_only=True)
class QemuOptions:
    """What to start.

    ``run_as`` is the uid (and gid) of an unprivileged QEMU: it is then started in its seccomp
    sandbox too, as libvirt does.
    """

    accel: Accel = Accel.TCG
    memory: Memory = field(default_factory=Memory)
    processors: int = 1
    balloon: bool = True
    run_as: int | None = None
    binary: str = "qemu-system-x86_64"
    extra: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Build the command line but for the sockets and the kernel."""
        arguments = [self.binary, "-nodefaults", "-no-user-config", "-display", "none"]
        arguments += ["-machine", f"pc,accel={self.accel.value}", *self.memory.arguments()]
        arguments += ["-smp", str(self.processors)]
        if self.balloon:
            arguments += ["-device", "virtio-balloon-pci,id=balloon0,disable-modern=on"]
        if self.run_as is not None:
            arguments += ["-sandbox", _SANDBOX]
        return [*arguments, *self.extra]


class Qemu:
    """One QEMU process with the micro-guest in it; a context manager that ends it.

    ``guest`` is its console. ``qmp_path`` is a monitor that nobody uses: give it to what is
    shown or tested. ``monitor`` is another one, for oneself.
    """

    guest: MicroGuest
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

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What QEMU wrote to its standard output and error."""
        return self._log_path.read_text(errors="replace")

    def start(self) -> None:
        """Start QEMU and wait until the guest answers; raise LabError when it does not."""
        with _Listeners() as listeners:
            command = [*self.options.arguments(), "-kernel", str(self._install_elf())]
            command += self._socket_arguments(listeners)
            self._process = self._spawn(command, listeners.numbers)
        self._reaper = _start_reaper(self.pid)
        try:
            self.monitor = Monitor(self._monitor_path)
            self.guest = MicroGuest(self.console_path)
            self.guest.wait_until_up()
        except (LabError, OSError) as error:
            raise LabError(
                "QEMU does not come up",
                why=self.log.strip() or str(error),
                hint=f"it was started as: {' '.join(command)}",
            ) from error

    def stop(self) -> None:
        """Kill QEMU, whatever it is doing, and remove what it left."""
        for connection in ("guest", "monitor"):
            if connection in self.__dict__:
                self.__dict__.pop(connection).close()
        for process in (self._process, self._reaper):
            if process is not None:
                process.kill()
                process.wait()
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def is_running(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def wait_for_exit(self, timeout_s: float = _EXIT_TIMEOUT_S) -> int:
        """Wait until QEMU ends by itself; return its exit status, negative for a signal."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError("QEMU does not end", why="it was expected to", pid=self.pid) from None

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _install_elf(self) -> Path:
        """Put the guest's image where any uid can read it."""
        elf = self.directory / "microguest.elf"
        shutil.copyfile(find_elf(), elf)
        elf.chmod(0o644)
        if self.options.run_as is not None:
            os.chown(self.directory, self.options.run_as, self.options.run_as)
        return elf

    def _socket_arguments(self, listeners: _Listeners) -> list[str]:
        arguments = []
        for name, path in (("qmp", self.qmp_path), ("monitor", self._monitor_path)):
            arguments += ["-chardev", _server(name, listeners.listen(path))]
            arguments += ["-mon", f"chardev={name},mode=control"]
        arguments += ["-chardev", _server("console", listeners.listen(self.console_path))]
        return [*arguments, "-serial", "chardev:console"]

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


class _Listeners:
    """Sockets that listen already when QEMU gets them, so that nobody has to wait for them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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


def _server(name: str, number: int) -> str:
    return f"socket,id={name},fd={number},server=on,wait=off"


def _start_reaper(pid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", _REAPER, "reaper", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # not to be interrupted together with its parent
    )


def _kvm_groups() -> list[int]:
    try:
        status = Path("/dev/kvm").stat()
    except FileNotFoundError:
        return []
    return [status.st_gid] if stat.S_IMODE(status.st_mode) & stat.S_IRGRP else []


def _switch(*, on: bool) -> str:
    return "on" if on else "off"
