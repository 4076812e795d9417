# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a process, perhaps as another user, and a manager that runs for a while."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdballoon.daemon import client
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.errors import UffdballoonError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from uffdballoon.lab.qemu_process import QemuProcess

COMMAND = str(Path(sys.executable).with_name("uffdballoon"))
_PATIENCE_S = 30.0
_HUNG_S = 300.0  # a command that ends by itself has never needed a tenth of it


@dataclass(frozen=True)
class Command:
    """How the command is run: behind what prefix, with what more in its environment."""

    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def line(self, *arguments: object) -> list[str]:
        return [*self.prefix, COMMAND, *map(str, arguments)]

    @property
    def surroundings(self) -> dict[str, str]:
        return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **self.environment}

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*arguments),
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=self.surroundings,
            timeout=_HUNG_S,
        )

    def ask(self, *arguments: object) -> Any:  # noqa: ANN401 - what it prints is its own
        """Run a verb that prints JSON; fail with what it says."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _answers(self, pid: int) -> bool:
        """Tell whether a manager tells its status; by a command only where we are not its user."""
        if self.prefix or self.environment:
            return self.run("status", pid).returncode == 0
        try:
            client.status(pid)
        except UffdballoonError:
            return False
        return True

    @contextlib.contextmanager
    def attached(self, pid: int, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """Run a manager of process ``pid``, and wait until it enforces."""
        manager = subprocess.Popen(
            self.line("attach", pid, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=self.surroundings,
        )
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while not self._answers(pid):
                assert manager.poll() is None, manager.communicate()
                assert time.monotonic() < deadline, "it does not answer"
                time.sleep(0.005)
            yield manager
        finally:
            manager.kill()
            manager.communicate()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return Command().run(*arguments)


def refused(code: int, *arguments: object) -> str:
    """Run a command that must fail: with its code, a line of what and one of what to do."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert any(line.startswith("error: ") for line in lines), done.stderr
    assert any(line.startswith("do: ") for line in lines), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@contextlib.contextmanager
def attached(qemu: QemuProcess, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a manager of a QEMU of the lab's, with its monitor."""
    try:
        with Command().attached(qemu.pid, "--qmp", qemu.qmp_path, *arguments) as manager:
            yield manager
    finally:
        socket_path(qemu.pid).unlink(missing_ok=True)  # a killed manager cannot


def status_of(qemu: QemuProcess) -> dict[str, Any]:
    state: dict[str, Any] = Command().ask("status", qemu.pid)
    return state
