# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations that need the memory, or do not, and a session that is served by hand meanwhile."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.model.records.events import Event, EventKind

BALLOON = GpaRange.of(64 << 20, 8 << 20)
FIRST = GpaRange.of(BALLOON.start, PAGE_BYTES)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0xB0B
PATIENCE_S = 60.0


def set_capability(qemu: Qemu, name: str, *, on: bool = True) -> None:
    capabilities = [{"capability": name, "state": on}]
    qemu.monitor.execute("migrate-set-capabilities", capabilities=capabilities)


def migration_of(qemu: Qemu) -> str:
    return str(qemu.monitor.execute("query-migrate").get("status"))


def runs(qemu: Qemu) -> bool:
    return bool(qemu.monitor.execute("query-status")["running"])


class Destination:
    """Where a migration goes; it gets no further than a socket's buffer until go_on()."""

    def __init__(self, path: Path) -> None:
        self.uri = f"unix:{path}"
        self._goes_on = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def go_on(self) -> None:
        self._goes_on.set()

    def close(self) -> None:
        self.go_on()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join()
        self._listener.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            source, _ = self._listener.accept()
            with source:
                self._goes_on.wait()
                while source.recv(1 << 20):
                    pass


class Attached:
    """A session that is served by hand, and what it told."""

    def __init__(self, qemu: Qemu, session: Session) -> None:
        self.qemu = qemu
        self.session = session
        self.told: list[Event] = []

    def inflate(self, span: GpaRange = BALLOON) -> None:
        self.session.inflate(span, Granule.SMALL, guest_agreed=True)
        self.serve()

    def serve(self) -> None:
        self.told += self.session.drain_monitor()
        self.told += self.session.keep_up()
        self.told += self.session.drain_events()

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.told
            self.serve()
            time.sleep(0.005)

    def wait_for(self, kind: EventKind) -> Event:
        self.wait_until(lambda: self.has_told(kind))
        return next(event for event in self.told if event.kind is kind)

    def has_told(self, kind: EventKind) -> bool:
        return any(event.kind is kind for event in self.told)

    def violates(self, gpa: int) -> None:
        """Touch a page of the balloon, which is to be a violation."""
        before = self.session.touch_counts().violations
        self.qemu.guest.touch(GpaRange.of(gpa, PAGE_BYTES), Access.WRITE)
        assert self.session.touch_counts().violations == before + 1


def attach(qemu: Qemu) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid, qmp_path=str(qemu.qmp_path), policy=parse_policy("zero-read,observe")
        )
    )
