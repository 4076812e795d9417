# SPDX-License-Identifier: GPL-2.0-or-later
"""The C fault loop: started, stopped, asked and listened to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.kernel.errnos import check_uffd
from uffdballoon.kernel.uffd import Feature
from uffdballoon.model.addresses import PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.touch import Access, Action, Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.kernel.ledger import Ledger
    from uffdballoon.kernel.uffd import Userfaultfd

_RING_RECORDS = 1 << 16
_DRAIN_RECORDS = 1024

RUNGS = {
    Action.GRANT: lib.UFFDB_RUNG_OBSERVE,
    Action.ZERO_READ: lib.UFFDB_RUNG_ZERO_READ,
    Action.KILL: lib.UFFDB_RUNG_KILL,
}
"""The rungs that the loop can perform, by the action that they are."""
_VERDICTS = {
    lib.UFFDB_ORDINARY: Verdict.ORDINARY,
    lib.UFFDB_GRANTED: Verdict.GRANTED,
    lib.UFFDB_VIOLATION: Verdict.VIOLATION,
}
_ACTIONS = {
    lib.UFFDB_ACTION_NONE: Action.NONE,
    lib.UFFDB_ACTION_GRANT: Action.GRANT,
    lib.UFFDB_ACTION_ZERO_READ: Action.ZERO_READ,
    lib.UFFDB_ACTION_KILL: Action.KILL,
}


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
class LoopStats:
    """Counters since the start, named after outcomes; see struct uffdb_stats."""

    ordinary: int
    granted: int
    violations: int
    host_reads: int
    action_grant: int
    action_zero_read: int
    action_kill: int
    slipped_writes: int
    exists: int
    retried: int
    gone: int
    failed: int
    events_posted: int
    events_dropped: int
    moves: int
    windows: int
    armed_bytes: int


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
        rungs: Sequence[Action],
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
                "follow_cpu": True,
                "ring_records": _RING_RECORDS,
                "nr_rungs": len(rungs),
                "rungs": [RUNGS[rung] for rung in rungs],
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

    def arm(self, span: HvaRange) -> None:
        """Trap what is absent in the 2 MiB blocks that hold ``span``."""
        check_uffd(
            lib.uffdb_engine_arm(self._engine, span.start, span.size_bytes), f"cannot trap {span}"
        )

    def deflate(self, span: HvaRange) -> int:
        """Give pages back and lift their traps; return the bytes that were ballooned."""
        pages = check_uffd(
            lib.uffdb_engine_deflate(self._engine, span.start, span.size_bytes),
            f"cannot give {span} back",
        )
        return pages * PAGE_BYTES

    def set_vcpus(self, tids: Sequence[int]) -> None:
        """Say which threads are the guest; with none given, all are."""
        check_uffd(
            lib.uffdb_engine_set_vcpus(self._engine, list(tids), len(tids)),
            "cannot tell the vCPU threads",
        )

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
        return LoopStats(
            **{name: int(getattr(stats, name)) for name in LoopStats.__dataclass_fields__}
        )

    def answer_ns(self, permille: int) -> int:
        """Return a percentile of the time from reading a fault to its answer, in ns."""
        return int(lib.uffdb_engine_latency(self._engine, permille))

    @staticmethod
    def _record(event: object) -> TouchRecord:
        e = ffi.cast("struct uffdb_event *", ffi.addressof(event))
        return TouchRecord(
            sequence=int(e.seq),
            time_ns=int(e.time_ns),
            span=HvaRange.of(Hva(e.hva), e.size),
            tid=int(e.tid),
            access=Access.WRITE if e.write else Access.READ,
            role=Role.HOST if e.host else Role.VCPU,
            verdict=_VERDICTS[e.verdict],
            action=_ACTIONS[e.action],
            answer_ns=int(e.answer_ns),
        )
