# SPDX-License-Identifier: GPL-2.0-or-later
"""A limit for a Linux guest whose driver inflates nothing, and reports what is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind, Terms, TermsChange
from uffdballoon.session.policies import PolicyWish

if TYPE_CHECKING:
    from uffdballoon.lab.linux_qemu import LinuxQemu
    from uffdballoon.model.records.status import Status
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

_RAM_BYTES = 512 << 20
_HOG_BYTES = 320 << 20
_WORK_BYTES = 32 << 20
_ENOUGH_BYTES = 192 << 20
_FLOOR_BYTES = 128 << 20
_SEED = 0x5EED
_COUNTING = Terms(kind=ContractKind.CAP, count_reported=True)


def limit_by_reporting(stage: Stage) -> None:
    """Hold a guest to a limit by what it reports free, and give it more while it waits."""
    qemu = stage.start_linux(_RAM_BYTES, free_page_reporting=True)
    work = qemu.guest.start(f"guestwork memory {_WORK_BYTES} {_SEED} 3600")
    work.read_line()
    with stage.attach(qemu, "freeze", _COUNTING) as session:
        _use_and_free(stage, session, qemu)
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
    stage.promise(
        "what was given up as a block came back as one",
        holds=regained_bytes >= _ENOUGH_BYTES // 2 and grants < 2 * regained_bytes // HUGE_BYTES,
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
