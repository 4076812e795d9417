# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor (QMP) connection for the one who started a QEMU, and knows whose it is."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Any

from uffdballoon.errors import LabError
from uffdballoon.vmm.qemu.inbox import Inbox
from uffdballoon.vmm.qemu.qmp import QmpConnection

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 60.0


class Monitor:
    """One QMP session; events that nobody waited for yet are kept, the last ones at least."""

    def __init__(self, path: Path) -> None:
        """Connect; raise OSError, or QmpError when QEMU does not greet."""
        self._events: list[dict[str, Any]] = []
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.connect(str(path))
        except BaseException:
            connected.close()
            raise
        self._inbox = Inbox()
        self._connection = QmpConnection(connected, self._inbox)
        try:
            self._connection.greet(_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()
        self._inbox.close()

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - it is JSON
        """Run a command and return what it returns; underscores in names become hyphens.

        Raises QmpError.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._connection.execute(command, named, timeout_s=_TIMEOUT_S)

    def hmp(self, command: str) -> str:
        """Run a command of the monitor for people."""
        text = self.execute("human-monitor-command", command_line=command)
        assert isinstance(text, str)
        return text

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """Take the first event of that name, waiting for it if need be; raise LabError."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            self._events += self._connection.take_events()
            for event in self._events:
                if event["event"] == name:
                    self._events.remove(event)
                    return event
            left_s = deadline - time.monotonic()
            if self._connection.is_lost or left_s <= 0:
                raise LabError(f"QEMU tells of no {name}", why="it has ended, or it did not happen")
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            poll.poll(left_s * 1000)

    def balloon_bytes(self) -> int:
        """Ask how much memory the guest has left, by what its driver said."""
        actual = self.execute("query-balloon")["actual"]
        assert isinstance(actual, int)
        return actual
