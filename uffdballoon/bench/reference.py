# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine is measured against (native/bench/): other handlers, and bare parts of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.bench._bench import ffi, lib  # noqa: TID251 - all that uses it
from uffdballoon.host.errnos import check_uffd

if TYPE_CHECKING:
    from uffdballoon.core.ledger import Ledger
    from uffdballoon.host.uffd import Userfaultfd


class HandlerKind(enum.IntEnum):
    """MANPAGE is the manual's example; BEST the fastest that knows of no balloon."""

    MANPAGE = lib.UFFDB_BENCH_MANPAGE
    BEST = lib.UFFDB_BENCH_BEST


class ReferenceHandler:
    """Answers faults until it is left; nobody is woken by its end."""

    def __init__(
        self, uffd: Userfaultfd, kind: HandlerKind, *, page_bytes: int, cpu: int = -1
    ) -> None:
        self._uffd = uffd
        self._arguments = (kind, page_bytes, cpu)

    def __enter__(self) -> Self:
        out = ffi.new("struct uffdb_bench_handler **")
        check_uffd(
            lib.uffdb_bench_handler_start(self._uffd.fileno(), *self._arguments, out),
            "cannot start a handler",
        )
        self._handler = out[0]
        return self

    def __exit__(self, *_: object) -> None:
        lib.uffdb_bench_handler_stop(self._handler)


def _handle(ledger: Ledger) -> Any:  # noqa: ANN401 - a cffi pointer
    """Return a ledger of the product's extension as one of ours: its types are its own."""
    return ffi.cast("struct uffdb_ledger *", ledger.handle)


def scatter(ledger: Ledger, fragments: int, seed: int) -> int:
    """Call pages of the first RAM block ballooned; return how many are then.

    At random places, or at an even stride with a ``seed`` of 0.
    """
    return check_uffd(lib.uffdb_bench_scatter(_handle(ledger), fragments, seed), "cannot scatter")


def time_lookups(ledger: Ledger, count: int, *, span_bytes: int = 0, dependent: bool) -> float:
    """Return ns for a look-up at a random place; ``dependent`` ones cannot overlap."""
    return int(lib.uffdb_bench_lookups(_handle(ledger), count, span_bytes, dependent)) / count


@dataclass(frozen=True, slots=True)
class PlanTimes:
    """What planning took; see struct uffdb_bench_plan."""

    scratch_ns: int
    change_p50_ns: int
    change_p99_ns: int
    change_max_ns: int
    windows: int
    most_windows: int
    needed_bytes: int
    armed_bytes: int
    memory_bytes: int


def time_planning(ledger: Ledger, budget: int, changes: int) -> PlanTimes:
    """Plan the windows of a ledger, then change one 2 MiB block after the other."""
    result = ffi.new("struct uffdb_bench_plan *")
    check_uffd(lib.uffdb_bench_plan(_handle(ledger), budget, changes, result), "cannot plan")
    return PlanTimes(
        **{name: int(getattr(result, name)) for name in PlanTimes.__dataclass_fields__}
    )
