# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux driver's balloon, followed through what happens to drivers, guests and devices."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, run, status_of
from tests.support.life import working
from tests.support.marks import REAL_QEMU
from uffdballoon.errors import UnsupportedError
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Accel, Memory, QemuOptions
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import ProgressState, Verification
from uffdballoon.model.records.events import Event, EventKind, Notice
from uffdballoon.model.terms import TOLD, ContractKind, Terms
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.lab.hugepages import HugePagePool
    from uffdballoon.lab.qemu import Qemu

pytestmark = [*REAL_QEMU, pytest.mark.needs_linux_guest]

RAM_BYTES = 768 << 20
BALLOON_BYTES = 256 << 20
DIMM_BYTES = 128 << 20
SPARED_BYTES = 32 << 20  # less than the kernel itself takes
LEFT_BYTES = RAM_BYTES - BALLOON_BYTES
_PATIENCE_S = 90.0
EXACT = pytest.mark.parametrize("kind", [ObserverKind.TRACE, ObserverKind.MONITOR])
CAP = Terms(kind=ContractKind.CAP, floor_bytes=0)


@pytest.fixture(scope="module")
def linux() -> Iterator[LinuxQemu]:
    """One guest for all: each test leaves its balloon empty."""
    options = QemuOptions(
        memory=Memory(size_bytes=RAM_BYTES, slots=2, max_bytes=2 << 30), free_page_reporting=True
    )
    with LinuxQemu(options) as qemu:
        yield qemu


def attach(qemu: LinuxQemu, terms: Terms = TOLD, observer: ObserverKind | None = None) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            policy=parse_policy("observe"),
            terms=terms,
            observer=observer,
        )
    )


def serve_until(session: Session, holds: Callable[[], object]) -> list[Event]:
    told = session.settle()
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        told += session.settle()
    return told


def reach(session: Session, left_bytes: int) -> list[Event]:
    session.ask_balloon(left_bytes)
    return serve_until(session, lambda: session.balloon_progress().state is ProgressState.REACHED)


def check_agreement(session: Session, ballooned_bytes: int) -> None:
    assert session.verify() == Verification(
        ballooned_bytes=ballooned_bytes,
        actual_bytes=RAM_BYTES - ballooned_bytes,
        unaccounted_bytes=0,
        disagreements=(),
    )
    assert session.status().touches.violations == 0


@EXACT
def test_a_driver_that_is_unloaded_gives_all_back_and_loaded_again_is_followed(
    kind: ObserverKind, linux: LinuxQemu
) -> None:
    with attach(linux, observer=kind) as session, working(linux):
        reach(session, LEFT_BYTES)
        check_agreement(session, BALLOON_BYTES)
        linux.guest.unload_balloon_driver()
        session.settle()
        check_agreement(session, 0)
        assert session.status().windows == 0
        linux.guest.load_balloon_driver()
        serve_until(session, lambda: session.verify().ballooned_bytes == BALLOON_BYTES)
        check_agreement(session, BALLOON_BYTES)
        reach(session, RAM_BYTES)
        check_agreement(session, 0)


@EXACT
def test_a_reset_in_the_middle_of_an_inflate_is_survived(
    kind: ObserverKind, linux: LinuxQemu
) -> None:
    with attach(linux, observer=kind) as session:
        session.ask_balloon(LEFT_BYTES)
        serve_until(session, lambda: session.status().ballooned_bytes > 0)
        linux.monitor.execute("system_reset")
        linux.guest.wait_for_boot()
        # QEMU remembers what was asked for: the driver of the next boot does it from the start.
        told = serve_until(session, lambda: session.verify().ballooned_bytes == BALLOON_BYTES)
        assert any(event.kind is EventKind.RESET for event in told)
        with working(linux):
            check_agreement(session, BALLOON_BYTES)
            reach(session, RAM_BYTES)
            check_agreement(session, 0)


def test_a_guest_that_can_spare_no_more_stalls_and_why_is_told(linux: LinuxQemu) -> None:
    with attach(linux) as session:
        session.ask_balloon(SPARED_BYTES)
        serve_until(session, lambda: session.balloon_progress().state is not ProgressState.MOVING)
        progress = session.balloon_progress()
        assert progress.state is ProgressState.STALLED
        assert progress.why.startswith("the guest is out of memory: ")
        assert progress.actual_bytes is not None
        assert progress.actual_bytes > SPARED_BYTES
        assert session.verify().disagreements == ()
        reach(session, RAM_BYTES)
        check_agreement(session, 0)
        assert linux.guest.check("echo alive") == "alive\n"


def _polling_s(linux: LinuxQemu) -> object:
    where = {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval"}
    return linux.monitor.execute("qom-get", **where)


def test_status_has_what_the_guest_says_of_its_memory_while_somebody_asks(
    linux: LinuxQemu,
) -> None:
    assert _polling_s(linux) == 0
    with attached(linux):
        deadline = time.monotonic() + _PATIENCE_S
        while (told := status_of(linux)["guest_memory"])["age_s"] is None:
            assert time.monotonic() < deadline
        assert _polling_s(linux) == 7
        values, known = told["values"], linux.guest.memory_info()
        assert values["total-memory"] == known["MemTotal"]
        assert 0 < values["free-memory"] <= values["total-memory"]
        assert values.keys() >= {"available-memory", "swap-in", "swap-out", "major-faults"}
        text = run("status", linux.pid).stdout
        assert "major faults; told" in text
    assert _polling_s(linux) == 7  # the manager was killed
    with attach(linux) as session:
        told = session.status().guest_memory
        assert told is not None
        assert told.age_s is not None
    assert _polling_s(linux) == 0


def test_polling_that_another_client_set_stays(linux: LinuxQemu) -> None:
    where = {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval"}
    for period_s, meanwhile_s in ((2, 2), (3600, 7)):
        linux.monitor.execute("qom-set", **where, value=period_s)
        with attach(linux) as session:
            session.status()
            assert _polling_s(linux) == meanwhile_s
        assert _polling_s(linux) == period_s
    linux.monitor.execute("qom-set", **where, value=0)


def _hear_of_ram(session: Session) -> Notice:
    """Wait for the one event of RAM that came or went; ask for no status, which looks itself."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (told := [e for e in session.settle() if e.kind is EventKind.MEMORY_CHANGED]):
        assert time.monotonic() < deadline
    (only,) = told
    assert isinstance(only, Notice)
    return only


def test_memory_that_is_plugged_in_and_out_is_told_and_the_rest_enforced(
    linux: LinuxQemu,
) -> None:
    with attach(linux) as session, working(linux):
        linux.monitor.execute(
            "object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": DIMM_BYTES}
        )
        linux.monitor.execute("device_add", driver="pc-dimm", id="dimm0", memdev="more")
        came = _hear_of_ram(session)
        assert came.ram_change_bytes == DIMM_BYTES
        assert "are not enforced until you detach and attach again" in str(came.why)
        assert session.status().ram_change_bytes == DIMM_BYTES
        assert session.verify().unaccounted_bytes == 0
        reach(session, LEFT_BYTES + DIMM_BYTES)
        assert session.verify().ballooned_bytes == BALLOON_BYTES
        assert session.verify().unaccounted_bytes == 0
        reach(session, RAM_BYTES + DIMM_BYTES)
        linux.monitor.execute("device_del", id="dimm0")
        assert _hear_of_ram(session).ram_change_bytes == 0
        linux.monitor.execute("object-del", id="more")
        check_agreement(session, 0)


def test_memory_that_goes_leaves_the_rest_enforced(linux: LinuxQemu) -> None:
    linux.monitor.execute(
        "object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": DIMM_BYTES}
    )
    linux.monitor.execute("device_add", driver="pc-dimm", id="dimm0", memdev="more")
    with attach(linux) as session, working(linux):
        assert session.layout.allocated_bytes == RAM_BYTES + DIMM_BYTES
        linux.monitor.execute("device_del", id="dimm0")
        serve_until(session, lambda: session.status().ram_change_bytes == -DIMM_BYTES)
        linux.monitor.execute("object-del", id="more")
        reach(session, LEFT_BYTES)
        check_agreement(session, BALLOON_BYTES)
        reach(session, RAM_BYTES)
        check_agreement(session, 0)


def test_free_page_reports_are_no_inflates(linux: LinuxQemu) -> None:
    with attach(linux) as session:
        linux.guest.check(f"guestwork hog {BALLOON_BYTES}")
        # The driver reports what was freed, two seconds after, in blocks of 2 MiB and more.
        serve_until(session, lambda: session.status().observed.reported_bytes > 64 << 20)
        assert session.status().ballooned_bytes == 0
        linux.guest.check(f"guestwork hog {BALLOON_BYTES}")
        reach(session, LEFT_BYTES)
        check_agreement(session, BALLOON_BYTES)
        reach(session, RAM_BYTES)
        check_agreement(session, 0)


def test_free_page_reports_are_not_told_by_the_monitor(linux: LinuxQemu) -> None:
    with attach(linux, observer=ObserverKind.MONITOR) as session:
        linux.guest.check(f"guestwork hog {BALLOON_BYTES}")
        reach(session, LEFT_BYTES)
        work = linux.guest.check(f"guestwork memory {BALLOON_BYTES} 5 0")
        assert "bad=0" in work
        session.settle()
        check_agreement(session, BALLOON_BYTES)
        reach(session, RAM_BYTES)
        check_agreement(session, 0)


@pytest.mark.parametrize("kind", [ObserverKind.SCAN, ObserverKind.EVENT])
def test_what_a_driver_gives_up_is_seen_without_a_trace(
    kind: ObserverKind, linux: LinuxQemu
) -> None:
    small_bytes = 32 << 20
    linux.guest.check(f"guestwork hog {2 * BALLOON_BYTES}")  # there is memory to be missed
    with attach(linux, CAP, kind) as session:
        reach(session, RAM_BYTES - small_bytes)
        seen = session.status().ballooned_bytes
        # By scan reports and never-used memory cannot be told from the balloon.
        if kind is ObserverKind.EVENT:
            assert seen == small_bytes
        assert seen > 0
        assert session.verify().disagreements == ()
        reach(session, RAM_BYTES)
        work = linux.guest.check(f"guestwork memory {BALLOON_BYTES} 5 0")
        assert "bad=0" in work
        session.settle()
        assert session.status().touches.violations == 0


def test_told_is_refused_to_a_trace_where_reports_look_like_inflates(
    start_qemu: Callable[[QemuOptions], Qemu], huge_pages: HugePagePool
) -> None:
    assert huge_pages.free() > 0
    memory = Memory(size_bytes=128 << 20, backing=Backing.HUGETLBFS, share=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory, free_page_reporting=True))
    by_trace = SessionOptions(
        pid=qemu.pid, qmp_path=str(qemu.qmp_path), observer=ObserverKind.TRACE
    )
    with pytest.raises(UnsupportedError, match="told cannot be kept"):
        Session(by_trace)
    with Session(replace(by_trace, terms=CAP)) as session:
        assert session.status().observer is ObserverKind.TRACE
    with Session(replace(by_trace, observer=None)) as session:
        assert session.status().observer is ObserverKind.MONITOR
    qemu.guest.ping()
