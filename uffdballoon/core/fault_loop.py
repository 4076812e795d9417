# SPDX-License-Identifier: GPL-2.0-or-later
"""The C fault loop: started, stopped, asked and listened to."""

from __future__ import annotations

import contextlib
import enum
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon._native import ffi, lib
from uffdballoon.core.contract import ROLES, VERDICTS, GraceState, terms_fields
from uffdballoon.host.errnos import check_uffd
from uffdballoon.host.uffd import Feature
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Hva, HvaRange
from uffdballoon.model.ladder import Rung, RungKind
from uffdballoon.model.touch import Access, Action, Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from uffdballoon.core.ledger import Ledger
    from uffdballoon.core.relay import Lookout
    from uffdballoon.host.trace import Trace
    from uffdballoon.host.uffd import Userfaultfd
    from uffdballoon.model.terms import Terms

_RING_RECORDS = 1 << 16
_DRAIN_RECORDS = 256
_MAX_PARKED = 4096
_MAX_UNUSED = 1024

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
    lib.UFFDB_ACTION_NO_MEMORY: Action.NO_MEMORY,
}
_ROLES = {number: role for role, number in ROLES.items()}


class Observing(enum.IntEnum):
    """How the guest's own balloon is followed, enum uffdb_observing."""

    NONE = lib.UFFDB_OBSERVE_NONE
    TRACE = lib.UFFDB_OBSERVE_TRACE
    EVENTS = lib.UFFDB_OBSERVE_EVENTS
    SCAN = lib.UFFDB_OBSERVE_SCAN


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
    ``trace`` is for Observing.TRACE, and must outlive the loop. Without ``follow`` nothing is
    followed but by FaultLoop.follow() and tidy(). A touch that waited ``memory_patience_ns`` for a
    page of the host has the target killed; 0: it waits on. So late as ``reset_delay_ns`` the
    monitor may tell of a reset: a violation waits for it where a rung harms. With ``slackens``
    windows trap nothing where all that is touched would be granted, as far as that can be done.
    """

    terms: Terms
    rungs: tuple[Rung, ...]
    around_bytes: int = HUGE_BYTES
    window_budget: int = 0
    huge_mappings: int = 0
    follow_cpu: bool = True
    observing: Observing = Observing.NONE
    trace: Trace | None = None
    follow: bool = True
    tell_begin: bool = False
    memory_patience_ns: int = 0
    reset_delay_ns: int = 0
    slackens: bool = False


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A part of a file that is shared guest memory: an fd for reading and writing, and where."""

    fd: int
    offset_bytes: int
    span: HvaRange


@dataclass(frozen=True, slots=True)
class TargetFds:
    """A pidfd of the target, and its /proc/PID/pagemap and /proc/PID/mem opened for reading.

    The loop uses them until it is stopped; -1 for one that is not there. From ``files`` it drops
    zeros that readers were given.
    """

    pidfd: int
    pagemap: int
    mem: int
    files: tuple[MemoryFile, ...] = ()


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
    filled_outside: int
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
    observed_inflated: int
    observed_deflated: int
    reported_bytes: int
    reported_pages: int
    regained_bytes: int
    refused_discards: int
    lost_records: int
    resyncs: int
    doubtful: int
    given_twice: int
    pieces: int
    late: int
    late_reads: int
    zapped_again: int
    arm_ns_max: int
    windows: int
    armed_bytes: int
    unarmed_bytes: int
    taken_unseen_bytes: int
    slackens: int
    moving: int
    follow_errno: int
    actions: dict[Action, int]
    failed_errno: dict[str, int]


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
        fds: TargetFds,
        options: LoopOptions,
    ) -> None:
        shared_wp = Feature.PAGEFAULT_FLAG_WP | Feature.WP_HUGETLBFS_SHMEM
        files = ffi.new("struct uffdb_memory_file[]", [_file_fields(file) for file in fds.files])
        config = ffi.new(
            "struct uffdb_engine_config *",
            {
                "uffd": uffd.fileno(),
                "pidfd": fds.pidfd,
                "pagemap_fd": fds.pagemap,
                "mem_fd": fds.mem,
                "pid": pid,
                "write_protect": bool(uffd.features & Feature.PAGEFAULT_FLAG_WP),
                "write_protect_shared": uffd.features & shared_wp == shared_wp,
                "minor_shmem": bool(uffd.features & Feature.MINOR_SHMEM),
                "minor_hugetlbfs": bool(uffd.features & Feature.MINOR_HUGETLBFS),
                "follow_cpu": options.follow_cpu,
                "ring_records": _RING_RECORDS,
                "nr_rungs": len(options.rungs),
                "around_bytes": options.around_bytes,
                "window_budget": options.window_budget,
                "huge_mappings": options.huge_mappings,
                "observing": options.observing,
                "follow": options.follow,
                "slackens": options.slackens,
                "tell_begin": options.tell_begin,
                "memory_files": files,
                "nr_memory_files": len(fds.files),
                "memory_patience_ns": options.memory_patience_ns,
                "reset_delay_ns": options.reset_delay_ns,
                "trace": options.trace.handle if options.trace else ffi.NULL,
                "terms": terms_fields(options.terms),
                "rungs": [_rung_fields(rung) for rung in options.rungs],
            },
        )
        out = ffi.new("struct uffdb_engine **")
        check_uffd(lib.uffdb_engine_create(config, ledger.handle, out), "cannot make an engine")
        self._engine = ffi.gc(out[0], lib.uffdb_engine_destroy)
        self.handle = self._engine
        self._relay: Lookout | None = None
        self._kept = (ledger, options.trace)  # the loop reads them: they must live as long
        self._events = ffi.new("struct uffdb_event[]", _DRAIN_RECORDS)

    def start(self) -> None:
        """Answer faults, and follow the guest's balloon, each on a thread of its own."""
        check_uffd(lib.uffdb_engine_start(self._engine), "cannot start the fault loop")

    def resume(self, *, missed: bool) -> None:
        """Go on where another loop was killed; to be called before start().

        What was to be zapped and was not is the guest's.

        ``missed``: what the guest gave up and took back meanwhile was not observed.
        """
        check_uffd(lib.uffdb_engine_resume(self._engine, missed), "cannot take the windows over")

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

    def inflated(self) -> None:
        """Say that all that inflate() took is zapped, or was given back."""
        lib.uffdb_engine_inflated(self._engine)

    def deflate(self, span: HvaRange) -> int:
        """Give pages back and lift their traps; return the bytes that were ballooned."""
        pages = check_uffd(
            lib.uffdb_engine_deflate(self._engine, span.start, span.size_bytes),
            f"cannot give {span} back",
        )
        return pages * PAGE_BYTES

    def reset(self, at_ns: int = 0) -> None:
        """Empty the balloon after a reset of the guest; its boot grace begins.

        What was observed after ``at_ns`` (CLOCK_MONOTONIC) holds; 0: nothing does.
        """
        check_uffd(lib.uffdb_engine_reset(self._engine, at_ns), "cannot let the windows go")

    def news_fileno(self) -> int:
        """Return an eventfd: the balloon moved and is quiet, or there is something urgent."""
        return int(lib.uffdb_engine_news_fd(self._engine))

    def follow(self) -> bool:
        """Follow the guest's balloon at once, though a thread of its own does it all the time.

        False when all was quiet. Raises WindowBudgetError; the rest is trapped then.
        """
        return bool(
            check_uffd(lib.uffdb_engine_follow(self._engine), "cannot trap what was given up")
        )

    @contextlib.contextmanager
    def unused(self) -> Iterator[list[HvaRange]]:
        """Hold the loop; give ballooned stretches that hold zeros, to be zapped before it goes on.

        They were filled beside a page that was touched before their window was there.
        An empty list: there is nothing (left), and nothing is held.
        """
        out = ffi.new("struct uffdb_range[]", _MAX_UNUSED)
        count = lib.uffdb_engine_hold_zeros(self._engine, out, _MAX_UNUSED)
        if not count:
            yield []
            return
        try:
            yield [HvaRange.of(Hva(out[i].start), out[i].len) for i in range(count)]
        finally:
            lib.uffdb_engine_go_on(self._engine)

    def scan(self) -> int:
        """Compare memory with the last picture; return the bytes that were given up since."""
        pages = check_uffd(lib.uffdb_engine_scan(self._engine), "cannot scan the guest's memory")
        return pages * PAGE_BYTES

    def arrivals(self) -> list[int]:
        """Count the runs in which pages were given up: 2**i to 2**(i+1)-1 neighbours in a row."""
        out = ffi.new("uint64_t[]", lib.UFFDB_ORDERS)
        count = lib.uffdb_engine_arrivals(self._engine, out, lib.UFFDB_ORDERS)
        return [int(value) for value in out[0:count]]

    def look(self) -> int:
        """Take what was taken back untrapped out of the ledger; return its bytes."""
        return check_uffd(lib.uffdb_engine_look(self._engine), "cannot look at what was taken back")

    def tidy(self) -> int:
        """Let go of windows that lost their last ballooned page; return their bytes."""
        blocks = check_uffd(lib.uffdb_engine_tidy(self._engine), "cannot let a window go")
        return blocks * HUGE_BYTES

    def watch_resets(self, relay: Lookout | None) -> None:
        """Before a violation is acted on, see whether the monitor told of a reset.

        ``relay`` must stay open until this is called again, or the loop stopped.
        """
        lib.uffdb_engine_watch_resets(self._engine, relay.handle if relay else ffi.NULL)
        self._relay = relay

    def set_vcpus(self, tids: Sequence[int]) -> None:
        """Say which threads are the guest; with none given, all are."""
        check_uffd(
            lib.uffdb_engine_set_vcpus(self._engine, list(tids), len(tids)),
            "cannot tell the vCPU threads",
        )

    def set_policy(self, rungs: Sequence[Rung] | None, terms: Terms) -> int:
        """Answer by other rungs, unless None, and judge by other terms, from the next touch on.

        What is held is judged anew; returns how many of these are no longer.
        """
        fields = [_rung_fields(rung) for rung in rungs or ()]
        given = ffi.NULL if rungs is None else ffi.new("struct uffdb_rung[]", fields)
        wanted = ffi.new("struct uffdb_terms *", terms_fields(terms))
        return check_uffd(
            lib.uffdb_engine_set_policy(self._engine, given, len(fields), wanted),
            "cannot set the policy",
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
        """Take some of the events that wait; an empty list says that there are none."""
        count = lib.uffdb_engine_drain(self._engine, self._events, _DRAIN_RECORDS)
        return [_record(self._events[i]) for i in range(count)]

    def stats(self) -> LoopStats:
        stats = ffi.new("struct uffdb_stats *")
        lib.uffdb_engine_stats(self._engine, stats)
        names = set(LoopStats.__dataclass_fields__) - {"actions", "failed_errno"}
        return LoopStats(
            actions={action: int(stats.actions[i]) for i, action in _ACTIONS.items()},
            failed_errno={
                errno.errorcode.get(number, str(number)): int(count)
                for number, count in enumerate(stats.failed_errno)
                if count
            },
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


def _file_fields(file: MemoryFile) -> dict[str, int]:
    return {
        "fd": file.fd,
        "offset": file.offset_bytes,
        "hva": file.span.start,
        "len": file.span.size_bytes,
    }


def _rung_fields(rung: Rung) -> dict[str, int]:
    return {
        "kind": _RUNGS[rung.kind],
        "hold_ns": rung.hold_ns or 0,
        "bytes_per_s": rung.pages_per_s * PAGE_BYTES,
        "burst_bytes": rung.burst_pages * PAGE_BYTES,
    }
