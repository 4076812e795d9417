# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that touches, gives up and takes back single pages on command."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from typing import Self

from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.ram import Backing, RamBlock

_SOURCE = Path(__file__).with_name("tenant.c")
_PATIENCE_S = 30.0


def build_tenant(directory: Path) -> Path:
    binary = directory / "tenant"
    command = ["gcc", "-O1", "-pthread", "-Wall", "-Werror", "-o", str(binary), str(_SOURCE)]
    subprocess.run(command, check=True)
    return binary


class Tenant:
    """A running tenant with so many blocks of 2 MiB; a context manager that ends it."""

    def __init__(self, binary: Path, blocks: int) -> None:
        self._process = subprocess.Popen(
            [str(binary), str(blocks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._answers, self._orders = self._process.stdout, self._process.stdin
        ready, start, vcpu, host = self._answer().split()
        assert ready == "ready"
        self.vcpu_tid, self.host_tid = int(vcpu), int(host)
        self.block = RamBlock(
            "ram", Hva(int(start)), blocks * HUGE_BYTES, PAGE_BYTES, Backing.ANON, shared=False
        )
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._orders.close()
        self._answers.close()
        os.close(self._memory)

    def read(self, who: str, page: int) -> int:
        return self._do(f"r {who} {page}")

    def write(self, who: str, page: int, value: int) -> None:
        assert self._do(f"w {who} {page} {value}") == value

    def discard(self, page: int) -> None:
        assert self._do(f"d {page}") == 0

    def take_back(self, page: int) -> None:
        assert self._do(f"n {page}") == 0

    def collapse(self, block: int) -> bool:
        return self._do(f"c {block}") == 0

    def contents(self, span: HvaRange) -> bytes:
        """Read what is there, without a fault in a window."""
        return os.pread(self._memory, span.size_bytes, span.start)

    def _do(self, order: str) -> int:
        self._orders.write(f"{order}\n".encode())
        return int(self._answer())

    def _answer(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self._answers], [], [], _PATIENCE_S)[0], "it hangs"
            more = os.read(self._answers.fileno(), 128)
            assert more, "the tenant died"
            line += more
        return line.decode()
