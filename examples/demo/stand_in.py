# SPDX-License-Identifier: GPL-2.0-or-later
"""A plain process in the place of a guest, where there is no QEMU.

It has one shared mapping for RAM, one thread for a vCPU and QEMU's name, and so takes the same
path through uffdballoon as a QEMU with a memory backend and without a monitor does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from uffdballoon.model.addresses import GpaRange


def _memory(ram_bytes: int) -> list[str]:
    """Say what the process maps in the words of QEMU's command line."""
    backend = f"memory-backend-memfd,id=ram0,size={ram_bytes}B,share=on"
    return ["-object", backend, "-machine", "pc,memory-backend=ram0", "-m", f"size={ram_bytes}B"]


class StandIn:
    """Start the process, and ask it for what a guest's console would be asked for."""

    def __init__(self, ram_bytes: int) -> None:
        script = Path(__file__).with_name("stand_in_process.py")
        self._process = subprocess.Popen(
            ["qemu-system-x86_64", str(script), *_memory(ram_bytes)],
            executable=sys.executable,
            # Under that name Python does not find its own library.
            env=os.environ | {"PYTHONHOME": sys.base_prefix},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        self.ping()
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            process.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ping(self) -> None:
        self._ask("ping")

    def read(self, gpa: int) -> int:
        return self._ask("read", gpa)

    def write(self, gpa: int, value: int) -> None:
        self._ask("write", gpa, value)

    def fill(self, span: GpaRange, seed: int, *, stride_bytes: int) -> None:  # noqa: ARG002 - it fills all, in no time
        self._ask("fill", span.start, span.size_bytes, seed)

    def checksum(self, span: GpaRange, *, stride_bytes: int) -> int:  # noqa: ARG002 - the same
        return self._ask("checksum", span.start, span.size_bytes)

    def _ask(self, *words: str | int) -> int:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(*words, file=stdin)
        return int(stdout.readline())
