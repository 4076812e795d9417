# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor: a connection to it by way of the relay, which can be made anew."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.core.relay import Relay
from uffdballoon.errors import MonitorBusyError, QmpError, UffdballoonError
from uffdballoon.vmm.qemu.inbox import Inbox
from uffdballoon.vmm.qemu.libvirt_domain import begin_bridge, is_by_libvirt
from uffdballoon.vmm.qemu.peer import busy_error, path_of_peer, reach, unreachable_error
from uffdballoon.vmm.qemu.qmp import DEFAULT_TIMEOUT_S, QmpConnection

if TYPE_CHECKING:
    from uffdballoon.vmm.qemu.qmp import Pending


class Monitor:
    """The monitor of one process; close it, or use it as a context manager. Has no thread.

    Events come in order through fileno() and take_events(), of all connections.
    """

    def __init__(self, relay: Relay, path: str | None, pid: int, memory: int = -1) -> None:
        """Speak through a relay that notes resets in ``memory``, and own it.

        With None for a path it is not connected again when QEMU has ended it.
        """
        self.relay = relay
        self.path = path
        self._pid = pid
        self._memory = memory
        self._inbox = Inbox()
        self._connection = QmpConnection(relay.client, self._inbox)

    @classmethod
    def connect(cls, path: str, *, pid: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Connect to the monitor of process ``pid``, a path or by libvirt.

        Raises QmpError when there is none, or when the socket is another process's, and
        MonitorBusyError when another client holds it, or libvirt does not give it.
        """
        if is_by_libvirt(path):
            path = begin_bridge(pid, path)
        raw, path = reach(path, pid, timeout_s)
        monitor = cls(_relay_over(raw, -1), path, pid)
        try:
            monitor._connection.greet(timeout_s)
        except MonitorBusyError:
            monitor.close()
            raise busy_error(path, pid) from None
        except QmpError as error:
            monitor.close()
            raise unreachable_error(path, pid, error.why) from error
        except BaseException:
            monitor.close()
            raise
        return monitor

    @classmethod
    def take_over(
        cls, raw: socket.socket, path: str | None, *, pid: int, memory: int, timeout_s: float
    ) -> Self | None:
        """Go on with a connection that another manager had, and that somebody else holds, too.

        It is connected anew by ``path``, should QEMU end it; the peer's own without.

        Resets are noted in ``memory`` from the first byte on. None when QEMU does not answer:
        it may be waiting for us to answer a touch.
        """
        if path is None or is_by_libvirt(path):
            path = path_of_peer(raw)
        try:
            monitor = cls(_relay_over(raw, memory), path, pid, memory)
        except UffdballoonError:
            return None
        monitor.relay.keep(keeps=True)
        try:
            monitor._connection.get_in_step(timeout_s)
        except QmpError:
            monitor.close()
            return None
        return monitor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:  # noqa: ANN401 - what a command returns is its own
        """Run a QMP command and return its result; raise QmpError."""
        return self._connection.execute(command, arguments, timeout_s=timeout_s)

    def execute_with_file(self, command: str, arguments: dict[str, object], fd: int) -> Any:  # noqa: ANN401
        """Run a QMP command that takes an fd, as getfd and add-fd do; raise QmpError.

        It goes past the relay, which hands on bytes and no fds.
        """

        def send(line: bytes) -> None:
            with socket.socket(fileno=os.dup(self.relay.monitor_fd)) as connection:
                socket.send_fds(connection, [line], [fd])

        return self._connection.execute_by(send, command, arguments)

    def submit(self, command: str, arguments: dict[str, object] | None = None) -> Pending:
        """Send a command whose answer is waited for later, if at all; raise QmpError."""
        return self._connection.submit(command, arguments)

    def hmp(self, line: str) -> str:
        """Run a command of the human monitor and return its text."""
        text = self.execute("human-monitor-command", {"command-line": line})
        return str(text).replace("\r\n", "\n")

    def fileno(self) -> int:
        """Return an fd that is readable while take_events() has something to read; for good."""
        return self._inbox.fileno()

    def take_events(self) -> list[dict[str, Any]]:
        """Take what QEMU told since the last time: {"event", "data", "timestamp"} each."""
        return self._connection.take_events()

    def note_resets_in(self, memory: int) -> None:
        """Note resets in the memfd of a ledger, whenever this is connected anew, too."""
        self._memory = memory
        self.relay.note_in(memory)

    @property
    def is_lost(self) -> bool:
        """Whether the connection ended, as take_events() found; fileno() was readable then."""
        return self._connection.is_lost

    def reconnect(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Connect again after is_lost; False when QEMU does not answer (yet)."""
        if self.path is None:
            return False
        # Whoever else holds it: QEMU serves one client, and it shall be the next.
        self.relay.keep(keeps=False)
        self.relay.close()
        try:
            raw, self.path = reach(self.path, self._pid, timeout_s)
            self.relay = _relay_over(raw, self._memory)
            self._connection = QmpConnection(self.relay.client, self._inbox)
            self._connection.greet(timeout_s)
        except UffdballoonError:
            return False
        return True

    def close(self) -> None:
        """Disconnect; a connection that is broken already is no error."""
        self._connection.close()
        self.relay.close()
        self._inbox.close()


def _relay_over(raw: socket.socket, memory: int) -> Relay:
    """Make a relay of a connected socket, which is its own from here on."""
    try:
        return Relay(raw, memory)
    except BaseException:
        raw.close()
        raise
