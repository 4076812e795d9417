# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest whose driver gives up huge pages in pieces, which QEMU alone gives back none of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.qemu_options import Memory
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.lab.hugepages import HugePagePool
    from uffdballoon.lab.linux_qemu import LinuxQemu
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

_RAM_BYTES = 512 << 20
_GIVEN_BYTES = 256 << 20
_LEFT_BYTES = _RAM_BYTES - _GIVEN_BYTES
_ENOUGH = 0.9
_HUNGER_BYTES = 320 << 20
"""More than the balloon leaves: it needs pages that went back to the pool."""


def hugetlbfs_balloon(stage: Stage) -> None:
    """Inflate and deflate by half of the memory, by QEMU alone and with a manager."""
    pool = stage.reserve_huge_pages(_RAM_BYTES // HUGE_BYTES)
    memory = Memory(size_bytes=_RAM_BYTES, backing=Backing.HUGETLBFS, share=True, prealloc=True)
    qemu = stage.start_linux(_RAM_BYTES, memory=memory)
    free = pool.free()
    with stage.attach(qemu, "observe", observer=ObserverKind.DIRECT) as session:
        _reach(stage, session, _LEFT_BYTES)
        stage.guest(f"its driver gave up {format_size(_GIVEN_BYTES)}")
        stage.promise("QEMU alone gives nothing of it back", holds=pool.free() == free)
        _reach(stage, session, _RAM_BYTES)
    with stage.attach(qemu, "observe") as session:
        _reach(stage, session, _LEFT_BYTES)
        returned = (pool.free() - free) * HUGE_BYTES
        kept = session.status().observed.pieces_bytes
        stage.host(f"{format_size(returned)} are back in the pool, {format_size(kept)} are pieces")
        stage.promise(
            "of what the driver gave up nine tenths are back in the pool",
            holds=returned >= _ENOUGH * _GIVEN_BYTES,
        )
        stage.promise(
            "ledger, pieces, page tables and the driver's count agree",
            holds=returned + kept == _GIVEN_BYTES
            and session.verify().ballooned_bytes == returned
            and session.verify().disagreements == (),
        )
        _use_with_an_empty_pool(stage, session, qemu, pool)
        stage.promise("no touch was a violation", holds=session.status().touches.violations == 0)
    stage.promise("the guest is alive", holds=qemu.guest.check("echo alive").strip() == "alive")


def _use_with_an_empty_pool(
    stage: Stage, session: Session, qemu: LinuxQemu, pool: HugePagePool
) -> None:
    with pool.lowered(pool.free()):
        session.ask_balloon(_RAM_BYTES)
        pending = qemu.guest.start(f"guestwork hog {_HUNGER_BYTES}")
        stage.wait_for(session, "a touch that waits", lambda: bool(session.held()))
        stage.host("the pool is empty: the guest waits at memory that it has taken back")
        stage.promise("QEMU lives", holds=qemu.is_running() and not pending.is_there(0.1))
    stage.finish(session, pending)
    stage.guest("went on as soon as the pool had pages again")
    stage.promise("it has what it asked for", holds=pending.wait().status == 0)
    _reach(stage, session, _RAM_BYTES)


def _reach(stage: Stage, session: Session, size_bytes: int) -> None:
    session.ask_balloon(size_bytes)
    stage.wait_for(
        session,
        f"the guest at {format_size(size_bytes)}",
        lambda: session.balloon_progress().state is ProgressState.REACHED,
    )
    stage.settle(session)
