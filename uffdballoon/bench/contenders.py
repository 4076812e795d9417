# SPDX-License-Identifier: GPL-2.0-or-later
"""Those who answer the faults of a process: nobody, two reference handlers, and the engine.

Each is there from the first round to the last and takes its turn in every one:
``trap`` before memory is zapped, ``let_go`` after it was touched.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol, Self

from uffdballoon.bench.reference import HandlerKind, ReferenceHandler
from uffdballoon.core.fault_loop import FaultLoop, LoopOptions, Observing, TargetFds
from uffdballoon.core.ledger import Ledger
from uffdballoon.host.trace import Trace
from uffdballoon.host.uffd import Feature, RegisterMode, query_features
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.ladder import Rung, RungKind
from uffdballoon.model.ram import Backing
from uffdballoon.model.terms import TOLD, ContractKind, Terms
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from types import TracebackType

    from uffdballoon.model.ram import RamBlock

_FEATURES = (
    Feature.THREAD_ID
    | Feature.PAGEFAULT_FLAG_WP
    | Feature.MISSING_SHMEM
    | Feature.MISSING_HUGETLBFS
    | Feature.WP_HUGETLBFS_SHMEM
)
_OBSERVE = Rung(RungKind.OBSERVE)
_WIDE_OPEN = Rung.throttle(1 << 50, 1 << 50)
LADDERS: dict[str, tuple[Rung, ...]] = {
    "observe": (_OBSERVE,),
    "zero-read": (Rung(RungKind.ZERO_READ), _OBSERVE),
    "throttle": (_WIDE_OPEN, _OBSERVE),
}


class Contender(Protocol):
    name: str

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def trap(self, span: HvaRange) -> None: ...
    def let_go(self, span: HvaRange) -> None: ...


class Nobody:
    """The kernel's own fault path."""

    name = "plain"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def trap(self, span: HvaRange) -> None:
        pass

    def let_go(self, span: HvaRange) -> None:
        pass


class _Attached:
    """Holds a userfaultfd of its own of the process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        with contextlib.ExitStack() as undo:
            target = undo.enter_context(Target.open(pid, any_process=True))
            self.pidfd = target.pidfd
            with Injector(target) as injector:
                self.uffd = undo.enter_context(obtain_userfaultfd(injector).uffd)
            self.uffd.api(_FEATURES & query_features())
            self.undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo.close()


class Reference(_Attached):
    """A handler that knows of no balloon."""

    def __init__(self, pid: int, kind: HandlerKind, block: RamBlock, cpu: int) -> None:
        super().__init__(pid)
        self.name = kind.name.lower()
        self._kind = kind
        huge = block.backing is Backing.HUGETLBFS
        self._page_bytes = HUGE_BYTES if huge else PAGE_BYTES
        self._cpu = cpu
        self._turn = contextlib.ExitStack()

    def trap(self, span: HvaRange) -> None:
        self.uffd.register(span, RegisterMode.MISSING)
        self._turn.enter_context(
            ReferenceHandler(self.uffd, self._kind, page_bytes=self._page_bytes, cpu=self._cpu)
        )

    def let_go(self, span: HvaRange) -> None:
        self._turn.close()
        self.uffd.unregister(span)


class Engine(_Attached):
    """Ours. ``mode`` is a ladder, or what is touched: cap, reported, ordinary, or unfilled.

    cap grants by the contract, and reported what was discarded in large blocks.
    ordinary touches owned memory in a window, of which one page in 2 MiB is in the
    balloon; unfilled is the same without filling around. With ``slackens`` only that is trapped
    which the floor needs.
    """

    def __init__(
        self,
        pid: int,
        mode: str,
        block: RamBlock,
        *,
        floor_bytes: int = 0,
        slackens: bool = False,
    ) -> None:
        super().__init__(pid)
        self.name = f"engine:{mode}"
        self._is_ordinary = mode in ("ordinary", "unfilled")
        reported = mode == "reported"
        is_cap = reported or mode == "cap"
        cap = Terms(kind=ContractKind.CAP, floor_bytes=floor_bytes, count_reported=reported)
        terms = cap if is_cap else TOLD
        trace = Trace(pid) if reported else None
        if trace is not None:
            self.undo.callback(trace.close)
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self.undo.callback(os.close, pagemap)
        self.loop = FaultLoop(
            self.uffd,
            Ledger([block]),
            pid=pid,
            fds=TargetFds(self.pidfd, pagemap, -1),
            options=LoopOptions(
                terms=terms,
                observing=Observing.NONE if trace is None else Observing.TRACE,
                trace=trace,
                rungs=LADDERS.get(mode, (_OBSERVE,)),
                slackens=slackens,
                around_bytes=0 if mode == "unfilled" else HUGE_BYTES,
            ),
        )
        self.loop.start()
        self.undo.callback(self.loop.stop)

    def trap(self, span: HvaRange) -> None:
        if not self._is_ordinary:
            self.loop.inflate(span)
            return
        for block_end in range(span.start + HUGE_BYTES, span.end + 1, HUGE_BYTES):
            self.loop.inflate(HvaRange.of(Hva(block_end - PAGE_BYTES), PAGE_BYTES))

    def let_go(self, span: HvaRange) -> None:
        self.loop.deflate(span)
        while self.loop.drain():
            pass
