# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager that keeps fds: it stands in for systemd, which is no process 1 in tests.

It follows the protocol as it is documented (sd_notify(3), sd_pid_notify_with_fds(3),
sd_listen_fds(3)), over a real socket, to a manager that is a process of its own.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Self

from tests.support.command import COMMAND

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_S = 30.0
_MOST_FDS = 16


class ServiceManager:
    """Starts `uffdballoon attach` as a service, one at a time; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._log = (directory / "log").open("w+b")
        self.store: dict[str, int] = {}
        self.told: list[str] = []
        self._heard = threading.Condition()
        self._pid = 0
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"END", str(self._path))
        self._thread.join()
        self._socket.close()
        self._log.close()
        self.drop()

    def start(self, *arguments: object) -> None:
        """Start the service with what is stored, and wait until it says READY=1."""
        self.told.clear()
        self._pid = os.fork()
        if not self._pid:
            try:
                self._become([COMMAND, "attach", *map(str, arguments)])
            finally:
                os._exit(70)
        self.wait_for("READY=1")

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait for its end."""
        if not self._pid:
            return
        os.kill(self._pid, number)
        self.wait()

    def wait(self) -> int:
        pidfd = os.pidfd_open(self._pid)
        try:
            assert select.select([pidfd], [], [], _PATIENCE_S)[0], self.said
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def drop(self) -> None:
        """Close what is stored, as is done when a unit has stopped or failed."""
        for fd in self.store.values():
            os.close(fd)
        self.store.clear()

    def wait_for(self, assignment: str) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: assignment in self.told, _PATIENCE_S), self.said

    @property
    def said(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode()

    def _become(self, line: list[str]) -> None:
        os.dup2(self._log.fileno(), 1)
        os.dup2(self._log.fileno(), 2)
        # Out of the way first: what is at 3 and above may be among them.
        moved = [os.dup2(fd, 100 + i) for i, fd in enumerate(self.store.values())]
        for i, fd in enumerate(moved):
            os.dup2(fd, 3 + i)
        os.closerange(3 + len(moved), 1024)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._path),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(moved)),
            "LISTEN_FDNAMES": ":".join(self.store),
            "FDSTORE": str(_MOST_FDS),
        }
        os.execve(line[0], line, environment)  # noqa: S606 - the command itself

    def _listen(self) -> None:
        while True:
            message, fds, _, _ = socket.recv_fds(self._socket, 4096, _MOST_FDS)
            if message == b"END":
                return
            assignments = message.decode().split("\n")
            with self._heard:
                self._follow(assignments, fds)
                self.told += assignments
                self._heard.notify_all()

    def _follow(self, assignments: list[str], fds: list[int]) -> None:
        names = [a.removeprefix("FDNAME=") for a in assignments if a.startswith("FDNAME=")]
        if "FDSTORE=1" in assignments and "FDPOLL=0" not in assignments:
            fds = [fd for fd in fds if not _is_hung_up(fd)]
        if "FDSTORE=1" in assignments:
            self.store |= dict(zip(names, fds, strict=True))
            return
        if "FDSTOREREMOVE=1" in assignments:
            for name in names:
                if name in self.store:
                    os.close(self.store.pop(name))
        for fd in fds:  # BARRIER=1
            os.close(fd)


def _is_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)  # POLLERR and POLLHUP, which are told in any case
    return bool(poll.poll(0))
