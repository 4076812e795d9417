# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor (QMP) connection for the one who started a QEMU: synchronous and small."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from uffdballoon.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 60.0


class Monitor:
    """One QMP session; events that come meanwhile are kept in ``events``."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_TIMEOUT_S)
        self._received = b""
        try:
            self._socket.connect(str(path))
            self._read_message()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - it is JSON
        """Run a command and return what it returns; underscores in names become hyphens."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": named})
        self._socket.sendall(request.encode())
        while True:
            message = self._read_message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise LabError(f"QEMU refused `{request}`", why=message["error"]["desc"])
            self.events.append(message)

    def hmp(self, command: str) -> str:
        """Run a command of the monitor for people."""
        text = self.execute("human-monitor-command", command_line=command)
        assert isinstance(text, str)
        return text

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """Take the first event of that name, waiting for it if need be."""
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            self.events.append(self._read_message())

    def balloon_bytes(self) -> int:
        """Ask how much memory the guest has left, by what its driver said."""
        actual = self.execute("query-balloon")["actual"]
        assert isinstance(actual, int)
        return actual

    def _read_message(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise LabError("QEMU's monitor does not answer", why=str(error)) from error
            if not data:
                raise LabError("QEMU's monitor does not answer", why="QEMU has ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message
