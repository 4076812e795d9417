# SPDX-License-Identifier: GPL-2.0-or-later
"""Find something to enforce: a real QEMU where there is one, else a plain process."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from examples.demo.stand_in import StandIn
from uffdballoon.errors import LabError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from uffdballoon.model.addresses import GpaRange

RAM_BYTES = 256 << 20


class Console(Protocol):
    """What the demo asks of a guest; the micro-guest answers it over its serial line."""

    def ping(self) -> None: ...
    def read(self, gpa: int) -> int: ...
    def write(self, gpa: int, value: int) -> None: ...
    def fill(self, span: GpaRange, seed: int, *, stride_bytes: int) -> None: ...
    def checksum(self, span: GpaRange, *, stride_bytes: int) -> int: ...


@dataclass(frozen=True)
class Guest:
    pid: int
    console: Console
    qmp_path: Path | None
    introduction: str


@contextlib.contextmanager
def boot() -> Iterator[Guest]:
    """Start the best guest that this host can run; it ends with the context."""
    if shutil.which("qemu-system-x86_64") is None:
        with StandIn(RAM_BYTES) as stand_in:
            yield Guest(
                stand_in.pid,
                stand_in,
                None,
                "There is no QEMU here: a plain process of 256 MiB stands in for the guest.",
            )
        return
    with contextlib.ExitStack() as stack:
        qemu = _boot_qemu(stack)
        name = qemu.options.accel.name
        yield Guest(
            qemu.pid,
            qemu.guest,
            qemu.qmp_path,
            f"A real QEMU with a guest of 256 MiB, accelerated by {name}.",
        )


def _boot_qemu(stack: contextlib.ExitStack) -> Qemu:
    """Boot under KVM; where that does not come up, whatever the reason, under TCG."""
    memory = Memory(size_bytes=RAM_BYTES)
    try:
        return stack.enter_context(Qemu(QemuOptions(accel=Accel.KVM, memory=memory)))
    except LabError:
        return stack.enter_context(Qemu(QemuOptions(accel=Accel.TCG, memory=memory)))
