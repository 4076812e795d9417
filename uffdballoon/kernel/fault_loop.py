# SPDX-License-Identifier: GPL-2.0-or-later
"""The C fault loop: started, stopped, asked and listened to."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.kernel.contract import ROLES, VERDICTS, GraceState, contract_fields
from uffdballoon.kernel.errnos import check_uffd
from uffdballoon.kernel.uffd import Feature
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.ladder import Rung, RungKind
from uffdballoon.model.touch import Access, Action, Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.kernel.ledger import Ledger
    from uffdballoon.kernel.uffd import Userfaultfd
    from uffdballoon.model.terms import Terms

_RING_RECORDS = 1 << 16
_DRAIN_RECORDS = 1024
_MAX_PARKED = 4096

_RUNGS = {
    RungKind.OBSERVE: lib.UFFDB_RUNG_OBSERVE,
    RungKind.ZERO_READ: lib.UFFDB_RUNG_ZERO_READ,
    RungKind.THROTTLE: lib.UFFDB_RUNG_THROTTLE,
    RungKind.FREEZE: lib.UFFDB_RUNG_FREEZE,
    RungKind.PAUSE: lib.UFFDB_RUNG_PAUSE,
    RungKind.POISON: lib.UFFDB_RUNG_POISON,
    RungKind.KILL: lib.UFFDB_RUNG_KILL,
}
_ACTIONS = {
    lib.UFFDB_ACTION_NONE: Action.NONE,
    lib.UFFDB_ACTION_GRANT: Action.GRANT,
    lib.UFFDB_ACTION_ZERO_READ: Action.ZERO_READ,
    lib.UFFDB_ACTION_THROTTLE: Action.THROTTLE,
    lib.UFFDB_ACTION_FREEZE: Action.FREEZE,
    lib.UFFDB_ACTION_PAUSE: Action.PAUSE,
    lib.UFFDB_ACTION_POISON: Action.POISON,
    lib.UFFDB_ACTION_KILL: Action.KILL,
    lib.UFFDB_ACTION_RELEASE: Action.RELEASE,
}
_ROLES = {number: role for role, number in ROLES.items()}


class Resolution(enum.IntEnum):
    """How a held touch goes on."""

    GRANT = lib.UFFDB_RESOLVE_GRANT
    NEXT = lib.UFFDB_RESOLVE_NEXT
    POISON = lib.UFFDB_RESOLVE_POISON


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """What the loop judges by and how it works.

    ``around_bytes`` is filled at most around a touch of owned memory;
    ``window_budget`` is how many windows there may be, 0 for as many as the
    kernel allows; ``follow_cpu`` lets the loop run where the faults are.
    """

    terms: Terms
    rungs: tuple[Rung, ...]
    around_bytes: int = HUGE_BYTES
    window_budget: int = 0
    follow_cpu: bool = True


@dataclass(frozen=True, slots=True)
class TouchRecord:
    """A touch that was not ordinary, as the loop judged and answered it."""

    sequence: int
    time_ns: int
    span: HvaRange
    tid: int
    access: Access
    role: Role
    verdict: Verdict
    action: Action
    answer_ns: int


@dataclass(frozen=True, slots=True)
class ParkedTouch:
    """A touch that is held; times are of CLOCK_MONOTONIC, ``deadline_ns`` 0 for none."""

    id: int
    span: HvaRange
    tid: int
    access: Access
    action: Action
    since_ns: int
    deadline_ns: int


@dataclass(frozen=True, slots=True)
class LoopStats:
    """Counters since the start, named after outcomes; see struct uffdb_stats."""

    ordinary: int
    granted: int
    violations: int
    host_reads: int
    slipped_writes: int
    exists: int
    retried: int
    gone: int
    failed: int
    together: int
    around_pages: int
    events_posted: int
    events_dropped: int
    parked: int
    moves: int
    windows: int
    armed_bytes: int
    actions: dict[Action, int]


class FaultLoop:
    """Reads the faults of a userfaultfd and answers them, on a thread without Python.

    Only one thread at a time may call it.
    """

    def __init__(
        self,
        uffd: Userfaultfd,
        ledger: Ledger,
        *,
        pid: int,
        pidfd: int,
        pagemap_fd: int,
        options: LoopOptions,
    ) -> None:
        shared_wp = Feature.PAGEFAULT_FLAG_WP | Feature.WP_HUGETLBFS_SHMEM
        config = ffi.new(
            "struct uffdb_engine_config *",
            {
                "uffd": uffd.fileno(),
                "pidfd": pidfd,
                "pagemap_fd": pagemap_fd,
                "pid": pid,
                "write_protect": bool(uffd.features & Feature.PAGEFAULT_FLAG_WP),
                "write_protect_shared": uffd.features & shared_wp == shared_wp,
                "follow_cpu": options.follow_cpu,
                "ring_records": _RING_RECORDS,
                "nr_rungs": len(options.rungs),
                "around_bytes": options.around_bytes,
                "window_budget": options.window_budget,
                "contract": contract_fields(options.terms),
                "rungs": [_rung_fields(rung) for rung in options.rungs],
            },
        )
        out = ffi.new("struct uffdb_engine **")
        check_uffd(lib.uffdb_engine_create(config, ledger.handle, out), "cannot make an engine")
        self._engine = ffi.gc(out[0], lib.uffdb_engine_destroy)
        self._ledger = ledger  # the loop reads it: it must live as long
        self._events = ffi.new("struct uffdb_event[]", _DRAIN_RECORDS)

    def start(self) -> None:
        check_uffd(lib.uffdb_engine_start(self._engine), "cannot start the fault loop")

    def stop(self) -> None:
        """End the loop. Faults wait from now on: close the userfaultfd at once."""
        lib.uffdb_engine_stop(self._engine)

    def inflate(self, span: HvaRange) -> int:
        """Trap a range and call it ballooned; return the bytes that were not.

        To be zapped right after. Raises WindowBudgetError, and then all is as before.
        """
        pages = check_uffd(
            lib.uffdb_engine_inflate(self._engine, span.start, span.size_bytes),
            f"cannot trap {span}",
        )
        return pages * PAGE_BYTES

    def deflate(self, span: HvaRange) -> int:
        """Give pages back and lift their traps; return the bytes that were ballooned."""
        pages = check_uffd(
            lib.uffdb_engine_deflate(self._engine, span.start, span.size_bytes),
            f"cannot give {span} back",
        )
        return pages * PAGE_BYTES

    def reset(self) -> None:
        """Empty the balloon after a reset of the guest; its boot grace begins."""
        check_uffd(lib.uffdb_engine_reset(self._engine), "cannot let the windows go")

    def tidy(self) -> int:
        """Let go of windows that lost their last ballooned page; return their bytes."""
        blocks = check_uffd(lib.uffdb_engine_tidy(self._engine), "cannot let a window go")
        return blocks * HUGE_BYTES

    def set_vcpus(self, tids: Sequence[int]) -> None:
        """Say which threads are the guest; with none given, all are."""
        check_uffd(
            lib.uffdb_engine_set_vcpus(self._engine, list(tids), len(tids)),
            "cannot tell the vCPU threads",
        )

    def grace(self) -> GraceState | None:
        """Return what is left of the boot grace; None when none is running."""
        contract = ffi.new("struct uffdb_contract *")
        lib.uffdb_engine_contract(self._engine, contract)
        return GraceState.of(contract)

    def parked(self) -> list[ParkedTouch]:
        """List the touches that are held."""
        out = ffi.new("struct uffdb_parked[]", _MAX_PARKED)
        count = lib.uffdb_engine_parked(self._engine, out, _MAX_PARKED)
        return [
            ParkedTouch(
                id=int(held.id),
                span=HvaRange.of(Hva(held.hva), held.size),
                tid=int(held.tid),
                access=_access(held.write),
                action=_ACTIONS[held.action],
                since_ns=int(held.since_ns),
                deadline_ns=int(held.deadline_ns),
            )
            for held in out[0:count]
        ]

    def resolve(self, touch: ParkedTouch, how: Resolution) -> bool:
        """Answer a held touch; False when it is not held any more."""
        return int(lib.uffdb_engine_resolve(self._engine, touch.id, how)) == 0

    def release(self, tid: int = 0) -> int:
        """Grant what the frozen thread ``tid`` touched, or all that are frozen; count them."""
        return int(lib.uffdb_engine_release(self._engine, tid))

    def event_fileno(self) -> int:
        """Return an fd that is readable while events wait."""
        return int(lib.uffdb_engine_event_fd(self._engine))

    def drain(self) -> list[TouchRecord]:
        """Take up to 1024 events; an empty list says that there are no more."""
        count = lib.uffdb_engine_drain(self._engine, self._events, _DRAIN_RECORDS)
        return [self._record(self._events[i]) for i in range(count)]

    def stats(self) -> LoopStats:
        stats = ffi.new("struct uffdb_stats *")
        lib.uffdb_engine_stats(self._engine, stats)
        names = set(LoopStats.__dataclass_fields__) - {"actions"}
        return LoopStats(
            actions={action: int(stats.actions[i]) for i, action in _ACTIONS.items()},
            **{name: int(getattr(stats, name)) for name in names},
        )

    def answer_ns(self, permille: int) -> int:
        """Return a percentile of the time from reading a fault to its answer, in ns."""
        return int(lib.uffdb_engine_latency(self._engine, permille))

    def answer_histogram(self) -> list[tuple[int, int]]:
        """Return (largest ns of the bucket, touches in it) for each that is not empty."""
        out = ffi.new("struct uffdb_bucket[]", 1024)
        count = lib.uffdb_engine_latencies(self._engine, out, 1024)
        return [(int(bucket.top), int(bucket.count)) for bucket in out[0:count]]

    @staticmethod
    def _record(event: object) -> TouchRecord:
        e = ffi.cast("struct uffdb_event *", ffi.addressof(event))
        return TouchRecord(
            sequence=int(e.seq),
            time_ns=int(e.time_ns),
            span=HvaRange.of(Hva(e.hva), e.size),
            tid=int(e.tid),
            access=_access(e.write),
            role=_ROLES[e.role],
            verdict=VERDICTS[e.verdict],
            action=_ACTIONS[e.action],
            answer_ns=int(e.answer_ns),
        )


def _access(write: int) -> Access:
    return Access.WRITE if write else Access.READ


def _rung_fields(rung: Rung) -> dict[str, int]:
    return {
        "kind": _RUNGS[rung.kind],
        "hold_ns": rung.hold_ns or 0,
        "bytes_per_s": rung.pages_per_s * PAGE_BYTES,
        "burst_bytes": rung.burst_pages * PAGE_BYTES,
    }
