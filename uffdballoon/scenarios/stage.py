# SPDX-License-Identifier: GPL-2.0-or-later
"""What every scenario needs: a guest, a session, and somebody to tell."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from uffdballoon.errors import LabError
from uffdballoon.lab.confinement import NOT_CONFINED
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu import Qemu
from uffdballoon.lab.qemu_options import Accel, Memory, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import TOLD, Terms
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.confinement import Confinement
    from uffdballoon.lab.microguest import MicroGuest
    from uffdballoon.lab.qemu_process import QemuProcess
    from uffdballoon.model.fragmentation import FragmentationLimit
    from uffdballoon.model.observing import ObserverKind
    from uffdballoon.model.records.events import Event, EventKind

OWNED = GpaRange.of(32 << 20, 1 << 20)
BALLOON = GpaRange.of(64 << 20, 8 << 20)
_MEMORY_BYTES = 192 << 20
_SEED = 0x5EED
_PATIENCE_S = 60.0
_KEEP_UP_S = 0.05


class BrokenPromiseError(Exception):
    """What the policy promises did not hold; the scenario fails."""


class Pending(Protocol):
    """Something that the guest was told to do."""

    def is_there(self, timeout_s: float = 0.0) -> bool: ...


class Stage:
    """A guest and those who look at it; a context manager that ends the guest.

    ``quick`` asks a scenario that repeats something to do so a few times only.
    """

    def __init__(self, say: Callable[[str], None], accel: Accel, *, quick: bool = False) -> None:
        self._say = say
        self.accel = accel
        self.quick = quick
        self._running = contextlib.ExitStack()
        self.events: list[Event] = []
        self._keep_up_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def guest(self, text: str) -> None:
        """Tell what the guest did or saw."""
        self._say(f"guest: {text}")

    def host(self, text: str) -> None:
        """Tell what the host did or saw."""
        self._say(f"host:  {text}")

    def promise(self, text: str, *, holds: bool) -> None:
        """Tell of a promise; raise BrokenPromiseError when it does not hold."""
        self._say(f"{'kept' if holds else 'BROKEN'}:  {text}")
        if not holds:
            raise BrokenPromiseError(text)

    def start(
        self,
        memory_bytes: int = _MEMORY_BYTES,
        processors: int = 1,
        confinement: Confinement = NOT_CONFINED,
        memory: Memory | None = None,
        *,
        seabios: bool = False,
    ) -> Qemu:
        """Start a guest and fill the memory that it will keep."""
        memory = memory or Memory(size_bytes=memory_bytes)
        options = QemuOptions(
            accel=self.accel,
            memory=memory,
            processors=processors,
            sandbox=confinement is not NOT_CONFINED,
            confinement=confinement,
            seabios=seabios,
        )
        qemu = self._running.enter_context(Qemu(options))
        qemu.guest.fill(OWNED, _SEED)
        self.host(
            f"QEMU {qemu.pid} runs a guest of {format_size(memory.size_bytes)} "
            f"under {self.accel.value}"
        )
        return qemu

    def end(self, qemu: QemuProcess) -> None:
        """End a guest before the scenario does."""
        qemu.stop()

    def reserve_huge_pages(self, count: int) -> HugePagePool:
        """Add huge pages to the host's pool until the scenario ends."""
        pool = self._running.enter_context(HugePagePool(count))
        self.host(f"reserved {count} huge pages")
        return pool

    def start_linux(
        self,
        memory_bytes: int,
        *,
        memory: Memory | None = None,
        deflate_on_oom: bool = False,
        free_page_reporting: bool = False,
        next_kernel: bool = False,
    ) -> LinuxQemu:
        """Start a guest with Debian's kernel and its balloon driver."""
        options = QemuOptions(
            accel=self.accel,
            memory=memory or Memory(size_bytes=memory_bytes),
            deflate_on_oom=deflate_on_oom,
            free_page_reporting=free_page_reporting,
        )
        qemu = self._running.enter_context(LinuxQemu(options, next_kernel=next_kernel))
        self.host(
            f"QEMU {qemu.pid} runs a Linux guest of {format_size(memory_bytes)} "
            f"under {self.accel.value}"
        )
        return qemu

    def start_from(self, image: Path, options: QemuOptions) -> Qemu:
        """Start a guest from what a migration wrote to a file."""
        incoming = (*options.extra, "-incoming", f"exec:cat {image}")
        qemu = self._running.enter_context(Qemu(replace(options, extra=incoming)))
        self.host(f"QEMU {qemu.pid} was started from {image.name}")
        return qemu

    def attach(
        self,
        qemu: QemuProcess,
        policy: str,
        terms: Terms = TOLD,
        fragmentation: FragmentationLimit | None = None,
        observer: ObserverKind | None = None,
    ) -> Session:
        """Attach as `uffdballoon attach` does; leave the session to detach."""
        self.events.clear()
        options = SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            policy=parse_policy(policy),
            terms=terms,
            fragmentation=fragmentation,
            observer=observer,
        )
        session = Session(options)
        told_by = session.status().observer.value
        self.host(
            f"attached by pid; contract {terms.kind.value}, policy {policy}, observer {told_by}"
        )
        return session

    def inflate(
        self, session: Session, span: GpaRange = BALLOON, granule: Granule = Granule.SMALL
    ) -> None:
        """Have the guest agree to give a range up, and take it."""
        done = session.inflate(span, granule, guest_agreed=True)
        self.host(
            f"took {format_size(done.done_bytes)} at gpa {span.start:#x}; "
            f"{format_size(done.freed_bytes)} were resident and are free"
        )

    def pump(self, session: Session) -> None:
        """Take the session's events, and let it do what they ask for."""
        while drained := session.drain_events():
            self.events.extend(drained)
        self.events.extend(session.drain_monitor())
        if time.monotonic() >= self._keep_up_at:
            self.events.extend(session.keep_up())
            self._keep_up_at = time.monotonic() + _KEEP_UP_S

    def settle(self, session: Session) -> None:
        """Serve the session until the guest's balloon is quiet."""
        self.events.extend(session.settle())

    def wait_for_event(self, session: Session, kind: EventKind) -> None:
        """Serve the session until it tells of something of that kind."""
        self.wait_for(session, kind.value, lambda: any(e.kind is kind for e in self.events))
        self.settle(session)

    def wait_for(self, session: Session, what: str, condition: Callable[[], object]) -> None:
        """Serve the session until a condition holds; raise LabError when it never does."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"nothing came of it: {what}", why=f"waited {_PATIENCE_S:g} s")
            self.pump(session)
            time.sleep(0.001)
        self.pump(session)

    def finish(self, session: Session, pending: Pending) -> None:
        """Serve the session until the guest has done what it was told to."""
        self.wait_for(session, "the guest's answer", pending.is_there)

    def check_owned(self, guest: MicroGuest) -> None:
        """See that no byte that the guest owns was lost or changed."""
        check = guest.verify(OWNED, _SEED)
        self.promise("memory that the guest owns kept its contents", holds=check.bad_lines == 0)


def pages(first: int, count: int) -> GpaRange:
    """Return pages of the balloon by number."""
    return GpaRange.of(BALLOON.start + first * PAGE_BYTES, count * PAGE_BYTES)


def default_accel() -> Accel:
    """Return KVM where there is one, else TCG."""
    return Accel.KVM if Path("/dev/kvm").exists() else Accel.TCG
