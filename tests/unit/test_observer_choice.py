# SPDX-License-Identifier: GPL-2.0-or-later
"""Which observer is taken, with a trace and a log that a test plays."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import pytest

from uffdballoon.errors import PermissionDeniedError, QmpError, UnsupportedError, UsageError
from uffdballoon.host.trace import TracedRam
from uffdballoon.host.uffd import Feature
from uffdballoon.model.addresses import Gpa, Hva
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.part import Tick
from uffdballoon.model.ram import Backing, RamBlock, Segment
from uffdballoon.model.terms import ContractKind
from uffdballoon.observe import observers
from uffdballoon.observe.choice import Circumstances, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = RamBlock(
    idstr="pc.ram",
    hva=Hva(1 << 40),
    size_bytes=8 << 20,
    page_bytes=4096,
    backing=Backing.ANON,
    shared=False,
)
LOW = Segment(Gpa(0), 4 << 20, BLOCK, 0)
HIGH = Segment(Gpa(4 << 30), 4 << 20, BLOCK, 4 << 20)


class PlayedLog:
    """A log of QEMU's that is given back by close()."""

    fd = 17
    actual_pages = 3

    def __init__(self) -> None:
        self.closed = 0

    def tick(self) -> Tick:
        return Tick()

    def close(self) -> None:
        self.closed += 1


class PlayedTrace:
    """A host on which no system call can be traced, and a log can be read, or not."""

    source = "log"
    asked: tuple[int, int, Sequence[TracedRam], int]
    log_refusal: Exception | None = None

    def __init__(self, *_: object, **__: object) -> None:
        raise PermissionDeniedError("cannot trace")

    @classmethod
    def of_log(cls, pid: int, fd: int, ram: Sequence[TracedRam], *, actual_pages: int) -> Self:
        if cls.log_refusal is not None:
            raise cls.log_refusal
        made = object.__new__(cls)
        cls.asked = (pid, fd, ram, actual_pages)
        return made

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def trace(monkeypatch: pytest.MonkeyPatch) -> type[PlayedTrace]:
    played = type("Played", (PlayedTrace,), {})
    monkeypatch.setattr(observers, "Trace", played)
    return played


def circumstances(log: PlayedLog | None, **others: Any) -> Circumstances:  # noqa: ANN401
    return replace(
        Circumstances(
            pid=1,
            blocks=(BLOCK,),
            features=Feature(0),
            contract=ContractKind.TOLD,
            has_device=True,
            reports_free_pages=False,
            segments=(LOW, HIGH),
            open_log=None if log is None else lambda: log,
        ),
        **others,
    )


def test_the_log_is_read_where_nothing_can_be_traced_and_serves_told(
    trace: type[PlayedTrace],
) -> None:
    log = PlayedLog()
    chosen = choose(None, circumstances(log))
    assert chosen.observer.kind is ObserverKind.MONITOR
    assert chosen.why.startswith("trace not: cannot trace")
    assert chosen.observer.how == "log"
    assert chosen.observer.missed
    low, high = (TracedRam(0, 1 << 40, 4 << 20), TracedRam(4 << 30, (1 << 40) + (4 << 20), 4 << 20))
    assert trace.asked == (1, 17, [low, high], 3)
    chosen.observer.close()
    assert log.closed == 1


def test_a_log_that_cannot_be_read_is_given_back(trace: type[PlayedTrace]) -> None:
    trace.log_refusal = UnsupportedError("no inotify")
    log = PlayedLog()
    with pytest.raises(UnsupportedError, match="no inotify"):
        choose(ObserverKind.MONITOR, circumstances(log))
    assert log.closed == 1


def test_without_a_monitor_it_is_refused_and_passed_over() -> None:
    with pytest.raises(UsageError, match="observer monitor needs the monitor"):
        choose(ObserverKind.MONITOR, circumstances(None))
    chosen = choose(None, circumstances(None))
    assert chosen.observer.kind is ObserverKind.DIRECT
    assert "monitor not: observer monitor needs the monitor" in chosen.why


def test_a_monitor_that_does_not_answer_is_passed_over() -> None:
    def fail() -> PlayedLog:
        raise QmpError("no answer")

    chosen = choose(None, circumstances(None, open_log=fail))
    assert chosen.observer.kind is ObserverKind.DIRECT
    assert "monitor not: no answer" in chosen.why


HUGE = replace(BLOCK, page_bytes=2 << 20, backing=Backing.HUGETLBFS, shared=True)


def test_on_huge_pages_the_log_is_preferred_and_serves_told_with_reports() -> None:
    log = PlayedLog()
    huge = circumstances(
        log, blocks=(HUGE,), features=Feature.WP_HUGETLBFS_SHMEM, reports_free_pages=True
    )
    chosen = choose(None, huge)
    assert chosen.observer.kind is ObserverKind.MONITOR
    assert chosen.why == "it tells every page, in and out"
    with pytest.raises(UnsupportedError, match="the contract told cannot be kept here"):
        choose(ObserverKind.TRACE, huge)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"blocks": (BLOCK, replace(HUGE, shared=False))}, "mapped privately"),
        ({"blocks": (HUGE,)}, "WP_HUGETLBFS_SHMEM"),
        (
            {
                "blocks": (HUGE,),
                "features": Feature.WP_HUGETLBFS_SHMEM,
                "shared_with": "process 7 has it",
            },
            "process 7 has it",
        ),
    ],
)
def test_huge_pages_that_cannot_be_given_back_are_refused(others: dict[str, Any], why: str) -> None:
    log = PlayedLog()
    with pytest.raises(UnsupportedError, match=why):
        choose(ObserverKind.MONITOR, circumstances(log, **others))
    assert log.closed == 0
