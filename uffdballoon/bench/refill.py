# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast memory comes back to a guest that may have it, by who serves it."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.bench.contenders import Engine, Nobody, Reference
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.reference import HandlerKind
from uffdballoon.errors import LabError
from uffdballoon.lab.toucher import Toucher
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.ram import Backing, RamBlock
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.bench.contenders import Contender

DEFAULT_ROUNDS = 7
_GIB = 1 << 30
_PATIENCE_S = 30.0
_NEAR = "cap:near"
_ALLOWED_NEAR = 2  # of so many bytes that are in the balloon it may take one


class Deflated(Engine):
    """Ours after a deflate: of everything, or of all but a page in each 2 MiB.

    Of the second it is the window that remains: its touches are trapped still.
    """

    def __init__(self, pid: int, block: RamBlock, *, whole: bool) -> None:
        super().__init__(pid, "observe", block)
        self.name = "deflated" if whole else "deflated:windows-stay"
        self._whole = whole

    def trap(self, span: HvaRange) -> None:
        self.loop.inflate(span)
        if self._whole:
            self.loop.deflate(span)
            return
        for start in range(span.start, span.end, HUGE_BYTES):
            self.loop.deflate(HvaRange.of(Hva(start), HUGE_BYTES - PAGE_BYTES))


class Granted(Engine):
    """Ours under cap: nothing was deflated, every touch of a ballooned page is granted."""

    def __init__(self, pid: int, block: RamBlock) -> None:
        super().__init__(pid, "cap", block)
        self.name = "cap:granted"


class Slack(Granted):
    """The same, where touches that would be granted are not trapped.

    ``near``: the floor is half of the balloon, and what is above it is touched.
    """

    def __init__(self, pid: int, block: RamBlock, *, near: bool) -> None:
        floor_bytes = block.size_bytes // _ALLOWED_NEAR if near else 0
        Engine.__init__(self, pid, "cap", block, floor_bytes=floor_bytes, slackens=True)
        self.name = _NEAR if near else "cap:far"

    def let_go(self, span: HvaRange) -> None:
        violations = self.loop.stats().violations
        super().let_go(span)
        if violations:
            raise LabError("What the floor allows was not granted", why=f"{violations} violations")


class Reported:
    """Ours under cap, of memory that was reported free: taken back as the blocks that it was.

    It is there in its turn only: it sees what is zapped, and whoever else is measured zaps as well.
    """

    name = "cap:reported"

    def __init__(self, toucher: Toucher, block: RamBlock) -> None:
        self._toucher = toucher
        self._block = block
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def trap(self, span: HvaRange) -> None:
        engine = self._undo.enter_context(Engine(self._toucher.pid, "reported", self._block))
        self._loop = engine.loop
        self._toucher.zap()
        deadline = time.monotonic() + _PATIENCE_S
        while engine.loop.stats().armed_bytes < span.size_bytes:
            if time.monotonic() > deadline:
                raise LabError("What was zapped was not trapped", why="nothing told of it")
            engine.loop.follow()

    def let_go(self, span: HvaRange) -> None:
        regained_bytes = self._loop.stats().regained_bytes
        self._undo.close()
        if regained_bytes < span.size_bytes:
            raise LabError(
                "What was touched was not granted as blocks", why=f"{regained_bytes} bytes were"
            )


def _contenders(toucher: Toucher, block: RamBlock) -> Iterator[Contender]:
    pid = toucher.pid
    cpu = min(os.sched_getaffinity(0))
    yield Nobody()
    yield Reference(pid, HandlerKind.MANPAGE, block, cpu=-1)
    yield Reference(pid, HandlerKind.BEST, block, cpu=cpu)
    yield Deflated(pid, block, whole=True)
    yield Deflated(pid, block, whole=False)
    yield Granted(pid, block)
    yield Slack(pid, block, near=False)
    yield Slack(pid, block, near=True)
    yield Reported(toucher, block)


def run(*, rounds: int, size_bytes: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Write to memory that was zapped, page by page; return GiB/s by contender.

    Of the fastest round: in a virtual machine others measure how its own host
    backs memory that it never used, five milliseconds a huge page where seen.
    """
    rates: dict[str, dict[str, list[float]]] = {}
    pages = size_bytes // PAGE_BYTES
    for backing in ("anon", "thp"):
        with contextlib.ExitStack() as stack:
            toucher = stack.enter_context(Toucher(backing, size_bytes, 1))
            block = RamBlock(
                "ram", toucher.span.start, size_bytes, PAGE_BYTES, Backing.ANON, shared=False
            )
            contenders = [stack.enter_context(c) for c in _contenders(toucher, block)]
            of = rates.setdefault("4k" if backing == "anon" else "thp", {})
            for number in range(rounds + 1):
                progress(f"{backing}, round {number} of {rounds}")
                for contender in contenders:
                    # All start from memory that the kernel served, and that is free again:
                    # what a fresh page costs a virtual machine is its own host's business.
                    toucher.zap()
                    toucher.fill()
                    contender.trap(toucher.span)
                    try:
                        toucher.zap()
                        # All but the page of each block that may stay in the balloon: a page in
                        # 512, of which the trap is part of what is measured.
                        part = _ALLOWED_NEAR if contender.name == _NEAR else 1
                        elapsed_ns = toucher.touch(Access.WRITE, PAGE_BYTES, pages // part)
                    finally:
                        contender.let_go(toucher.span)
                    if number:
                        rate = size_bytes // part / _GIB / (elapsed_ns / 1e9)
                        of.setdefault(contender.name, []).append(rate)
    series: list[dict[str, Any]] = [
        {"name": name, "pages": backing, "gib_per_s": max(values), "rounds": len(values)}
        for backing, of in rates.items()
        for name, values in of.items()
    ]
    return {
        "machine": describe_machine(),
        "size_bytes": size_bytes,
        "series": series,
        "ratios": {
            f"{row['name']}_vs_manpage:{row['pages']}": row["gib_per_s"]
            / max(rates[row["pages"]]["manpage"])
            for row in series
            if row["name"] not in ("manpage", "plain")
        },
    }


HEADER = ("pages", "who", "GiB/s")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [(s["pages"], s["name"], f"{s['gib_per_s']:.3f}") for s in result["series"]]
