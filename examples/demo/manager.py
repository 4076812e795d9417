# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive uffdballoon the way a person does: the command itself, one process a verb."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

_PATIENCE_S = 60
"""Ends a hang; nothing here takes that long."""


class DemoError(Exception):
    """The demo cannot go on; the text says what a command answered."""


class Manager:
    """A running ``uffdballoon attach PID`` and the verbs that talk to it."""

    def __init__(self, pid: int, qmp_path: Path | None) -> None:
        self._pid = str(pid)
        self._monitor = [] if qmp_path is None else ["--qmp", str(qmp_path)]
        self._attach: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._attach = subprocess.Popen(
            [_command(), "attach", self._pid, *self._monitor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + _PATIENCE_S
        while self._ask("status", "--json").returncode != 0:
            if self._attach.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"attach did not come up: {self._end()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def inflate(self, gpa: int, size_bytes: int) -> None:
        self._do("inflate", "--gpa", hex(gpa), "--size", str(size_bytes), "--guest-agreed")

    def deflate(self, gpa: int, size_bytes: int) -> None:
        self._do("deflate", "--gpa", hex(gpa), "--size", str(size_bytes))

    def set_balloon(self, size_bytes: int) -> None:
        """Have the guest's own driver leave it so much."""
        self._do("set", "--balloon", str(size_bytes))

    def verify(self) -> None:
        """See that ledger, page tables and the guest agree; wait until what moved is quiet."""
        deadline = time.monotonic() + _PATIENCE_S
        while (done := self._ask("verify")).returncode != 0:
            if time.monotonic() > deadline:
                raise DemoError(f"uffdballoon verify: {done.stdout.strip()} {done.stderr.strip()}")
            time.sleep(0.05)

    def wait_until_no_window_is_left(self) -> dict[str, Any]:
        """Return the status then, or after a while: windows are tidied once it is quiet."""
        deadline = time.monotonic() + _PATIENCE_S
        while (state := self.status())["windows"] and time.monotonic() < deadline:
            time.sleep(0.05)
        return state

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._do("status", "--json"))
        return answer

    def violations(self) -> list[dict[str, Any]]:
        """Read all events so far and keep those that the contract calls violations."""
        lines = self._do("events", "--json").splitlines()
        events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [event for event in events if event["kind"] == "violation"]

    def detach(self) -> int:
        """Let go and wait for the attach to end; return its exit code."""
        self._do("detach")
        assert self._attach is not None
        return self._attach.wait(_PATIENCE_S)

    def _do(self, verb: str, *arguments: str) -> str:
        done = self._ask(verb, *arguments)
        if done.returncode != 0:
            raise DemoError(f"uffdballoon {verb}: {done.stderr.strip()}")
        return done.stdout

    def _ask(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_command(), verb, self._pid, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )

    def _end(self) -> str:
        """End the attach if it still runs; return what it said on stderr."""
        assert self._attach is not None
        if self._attach.poll() is None:
            self._attach.terminate()
        try:
            return self._attach.communicate(timeout=_PATIENCE_S)[1].strip()
        except subprocess.TimeoutExpired:
            self._attach.kill()
            return self._attach.communicate()[1].strip()


def _command() -> str:
    """Find the command that belongs to this Python, on PATH or not."""
    beside = Path(sys.executable).with_name("uffdballoon")
    found = str(beside) if beside.exists() else shutil.which("uffdballoon")
    if found is None:
        raise DemoError("the uffdballoon command is not installed; run `make dev`")
    return found
