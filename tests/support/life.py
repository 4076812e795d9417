# SPDX-License-Identifier: GPL-2.0-or-later
"""A session that is served while things happen to its guest, and what must hold after each."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.terms import TOLD
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from uffdballoon.lab.linux_qemu import LinuxQemu
    from uffdballoon.lab.qemu_process import QemuProcess
    from uffdballoon.model.records.events import Event, EventKind
    from uffdballoon.model.terms import Terms

_PATIENCE_S = 60.0


class Served:
    """A session, and what it told; a context manager that detaches."""

    def __init__(
        self, qemu: QemuProcess, policy: str = "zero-read,observe", terms: Terms = TOLD
    ) -> None:
        self._options = SessionOptions(
            pid=qemu.pid, qmp_path=str(qemu.qmp_path), policy=parse_policy(policy), terms=terms
        )
        self.told: list[Event] = []

    def __enter__(self) -> Self:
        self.session = Session(self._options)
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def serve(self) -> None:
        self.told += self.session.settle()

    def serve_until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        self.serve()
        while not holds():
            assert time.monotonic() < deadline, self.told[-20:]
            self.serve()

    def wait_for(self, kind: EventKind) -> None:
        self.serve_until(lambda: self.has_told(kind))

    def has_told(self, kind: EventKind) -> bool:
        return any(event.kind is kind for event in self.told)

    def ask(self, left_bytes: int) -> None:
        """Ask the guest's driver to leave it so much, and wait until it does."""
        self.session.ask_balloon(left_bytes)
        self.wait_until_reached()

    def wait_until_reached(self) -> None:
        reached = ProgressState.REACHED
        self.serve_until(lambda: self.session.balloon_progress().state is reached)

    @property
    def ballooned_bytes(self) -> int:
        return self.session.status().ballooned_bytes

    @property
    def violations(self) -> int:
        return self.session.touch_counts().violations

    def check(self, ballooned_bytes: int) -> None:
        """See that ledger, page tables and the guest's own count agree on so much."""
        found = self.session.verify()
        assert found.disagreements == ()
        assert found.ballooned_bytes == ballooned_bytes
        assert found.unaccounted_bytes == 0


@contextlib.contextmanager
def working(qemu: LinuxQemu, size_bytes: int = 64 << 20) -> Iterator[None]:
    """Have a Linux guest keep account of every word of so much memory, and find none wrong."""
    work = qemu.guest.start(f"guestwork memory {size_bytes} 5 3600")
    work.read_line()
    yield
    qemu.guest.check("killall -TERM guestwork")  # the agent, init, does not mind
    ran = work.wait()
    assert " bad=0" in ran.output, ran
