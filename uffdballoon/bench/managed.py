# SPDX-License-Identifier: GPL-2.0-or-later
"""A manager in a process of its own, as a user runs it, for as long as it is measured."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.daemon import client
from uffdballoon.errors import ControlError, LabError, UffdballoonError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.lab.qemu_process import QemuProcess

_PATIENCE_S = 60.0


@contextlib.contextmanager
def managed(qemu: QemuProcess, *options: str) -> Iterator[int]:
    """Attach to a QEMU of the lab by the command; yield the manager's pid, and detach.

    Raises LabError when it does not come up.
    """
    command = [sys.executable, "-m", "uffdballoon", "attach", str(qemu.pid)]
    command += ["--qmp", str(qemu.qmp_path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as manager:
        try:
            _wait_until_attached(manager, qemu.pid)
            yield manager.pid
            client.detach(qemu.pid)
        finally:
            manager.kill()


def _wait_until_attached(manager: subprocess.Popen[str], pid: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            client.status(pid)
        except ControlError as error:
            last: UffdballoonError = error
        else:
            return
        if manager.poll() is not None or time.monotonic() > deadline:
            assert manager.stderr is not None
            why = manager.stderr.read().strip() if manager.poll() is not None else str(last)
            raise LabError("the manager did not come up", why=why)
        time.sleep(0.01)


def voluntary_switches(pid: int) -> int:
    """Count how often the threads of a process went to sleep: each time something woke them."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )
