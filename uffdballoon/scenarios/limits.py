# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits: of a Linux guest that only reports what is free, and of a guest that wants all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.lab.qemu_options import Memory
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES
from uffdballoon.model.ram import Backing
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind, Terms, TermsChange
from uffdballoon.model.touch import Access
from uffdballoon.scenarios.stage import BALLOON
from uffdballoon.session.policies import PolicyWish

if TYPE_CHECKING:
    from uffdballoon.lab.hugepages import HugePagePool
    from uffdballoon.lab.linux_qemu import LinuxQemu
    from uffdballoon.model.records.status import Status
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

_RAM_BYTES = 512 << 20
_HOG_BYTES = 320 << 20
_WORK_BYTES = 32 << 20
_ENOUGH_BYTES = 192 << 20
_FLOOR_BYTES = 128 << 20
_BURST_PAGES = 16
_SEED = 0x5EED
_COUNTING = Terms(kind=ContractKind.CAP, count_reported=True)


def limit_by_reporting(stage: Stage) -> None:
    """Hold a guest to a limit by what it reports free, and give it more while it waits."""
    _limit_by_reporting(stage, stage.start_linux(_RAM_BYTES, free_page_reporting=True))


def limit_by_reporting_hugetlbfs(stage: Stage) -> None:
    """Do the same with memory of huge pages, on which a balloon of 4 KiB pages frees nothing."""
    pool = stage.reserve_huge_pages(_RAM_BYTES // HUGE_BYTES)
    memory = Memory(size_bytes=_RAM_BYTES, backing=Backing.HUGETLBFS, share=True)
    qemu = stage.start_linux(_RAM_BYTES, memory=memory, free_page_reporting=True)
    _limit_by_reporting(stage, qemu, pool)
    stage.end(qemu)


def _limit_by_reporting(stage: Stage, qemu: LinuxQemu, pool: HugePagePool | None = None) -> None:
    work = qemu.guest.start(f"guestwork memory {_WORK_BYTES} {_SEED} 3600")
    work.read_line()
    with stage.attach(qemu, "freeze", _COUNTING) as session:
        _use_and_free(stage, session, qemu)
        if pool is not None:
            stage.promise(
                "its huge pages are in the host's pool again",
                holds=pool.free() >= _ENOUGH_BYTES // HUGE_BYTES,
            )
        _take_back_blocks(stage, session, qemu)
        _reach_the_limit(stage, session, qemu)
        _wait_for_reports(stage, session)
        found = session.verify()
        stage.promise(
            "ledger, page tables and the guest's own count agree",
            holds=found.unaccounted_bytes == 0 and not found.disagreements,
        )
    qemu.guest.check("killall -TERM guestwork")
    stage.promise("what it kept has its contents", holds="bad=0" in work.wait().output)


def _ballooned(session: Session) -> int:
    return session.attached.enforcer.ledger.ballooned_bytes


def _wait_for_reports(stage: Stage, session: Session) -> None:
    stage.wait_for(session, "reports", lambda: _ballooned(session) >= _ENOUGH_BYTES)
    stage.settle(session)


def _use_and_free(stage: Stage, session: Session, qemu: LinuxQemu) -> None:
    qemu.guest.check(f"guestwork hog {_HOG_BYTES}")
    stage.guest(f"used {format_size(_HOG_BYTES)} and freed them; its driver inflates nothing")
    _wait_for_reports(stage, session)
    there = session.verify()
    stage.promise(
        f"{format_size(there.ballooned_bytes)} that it reported free are in the balloon, and gone "
        "from the host",
        holds=not there.disagreements,
    )


def _take_back_blocks(stage: Stage, session: Session, qemu: LinuxQemu) -> None:
    before, huge = session.status(), huge_bytes(qemu.pid)
    stage.finish(session, qemu.guest.start(f"guestwork hog {_ENOUGH_BYTES}"))
    after = session.status()
    grants = after.touches.granted - before.touches.granted
    regained_bytes = _taken_back(after) - _taken_back(before)
    grown = huge_bytes(qemu.pid) - huge
    stage.host(
        f"{format_size(_ENOUGH_BYTES)} used again: {grants} grants, {format_size(regained_bytes)} "
        f"of it in blocks of 2 MiB or untrapped; {format_size(max(grown, 0))} more in huge pages"
    )
    on_huge_pages = session.layout.blocks[0].page_bytes == HUGE_BYTES
    stage.promise(
        "what was given up as a block came back as one",
        holds=_ENOUGH_BYTES // HUGE_BYTES // 2 <= grants <= _HOG_BYTES // HUGE_BYTES
        if on_huge_pages
        else regained_bytes >= _ENOUGH_BYTES // 2 and grants < 2 * regained_bytes // HUGE_BYTES,
    )
    stage.promise("within the limit nothing was a violation", holds=not after.touches.violations)
    _wait_for_reports(stage, session)


def _taken_back(status: Status) -> int:
    """Return the bytes that came back as blocks, or where nothing was trapped."""
    return status.observed.regained_bytes + status.touches.taken_unseen_bytes


def _reach_the_limit(stage: Stage, session: Session, qemu: LinuxQemu) -> None:
    ram_bytes = session.layout.ram_bytes
    _hold_to(session, ram_bytes - _FLOOR_BYTES)
    stage.host(f"limited it to {format_size(ram_bytes - _FLOOR_BYTES)}")
    hog = qemu.guest.start(f"guestwork hog {_HOG_BYTES}")
    stage.wait_for(session, "the limit", session.held)
    left = _ballooned(session)
    stage.promise(
        f"it waits at the limit: {format_size(left)} stay in the balloon, and it lives",
        holds=_FLOOR_BYTES <= left < _FLOOR_BYTES + HUGE_BYTES and not hog.is_there(),
    )
    _hold_to(session, ram_bytes)
    stage.finish(session, hog)
    stage.promise("with more it goes on, and ends its work", holds=hog.wait().status == 0)


def _hold_to(session: Session, limit_bytes: int) -> None:
    session.policies.change(PolicyWish(policy=None, terms=TermsChange(limit_bytes=limit_bytes)))


def greedy_guest_at_its_limit(stage: Stage) -> None:
    """Slow a guest down that wants more than its limit, and give it more."""
    qemu = stage.start()
    floor_bytes = BALLOON.size_bytes * 3 // 4
    with stage.attach(qemu, "throttle=16/s:64KiB", Terms(kind=ContractKind.CAP)) as session:
        stage.inflate(session)
        ram_bytes = session.layout.ram_bytes
        _hold_to(session, ram_bytes - floor_bytes)
        stage.host(f"limited it to {format_size(ram_bytes - floor_bytes)}")
        pending = qemu.guest.start_touch(BALLOON, Access.WRITE)
        stage.guest(f"writes to all {format_size(BALLOON.size_bytes)} of its balloon")
        stage.wait_for(
            session,
            "more touches than the rate grants at once",
            lambda: session.touch_counts().violations > _BURST_PAGES + 1,
        )
        left_bytes = _ballooned(session)
        beyond_bytes = session.touch_counts().violations * PAGE_BYTES
        stage.host(f"{format_size(left_bytes)} stay in the balloon; the vCPU waits for its turn")
        stage.promise(
            "it has what it may, and beyond the limit a page at a time, at the rate",
            holds=floor_bytes - beyond_bytes <= left_bytes < floor_bytes,
        )
        stage.promise("it is slowed, and lives", holds=not pending.is_there() and qemu.is_running())
        _hold_to(session, ram_bytes)
        stage.finish(session, pending)
        pending.wait()
        stage.promise("with more it goes on at once", holds=not session.held())
    stage.check_owned(qemu.guest)
