# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose memory is a file: huge pages of a pool, and shared memory on tmpfs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from uffdballoon.lab.qemu_options import Memory
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES
from uffdballoon.model.granule import Granule
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.events import EventKind, TouchEvent
from uffdballoon.model.sizes import format_size
from uffdballoon.model.touch import Access, Action, Role
from uffdballoon.scenarios.stage import BALLOON, pages
from uffdballoon.target.backing import open_backing_file

if TYPE_CHECKING:
    from uffdballoon.lab.hugepages import HugePagePool
    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

_RAM_BYTES = 96 << 20
_SEED = 0xF11E
_WORD = 0xDE11CE
_BLOCK_BYTES = 512  # st_blocks, stat(2)


def hugetlbfs_2m(stage: Stage) -> None:
    """Give huge pages back to the pool, and have the guest wait for one when it is empty."""
    pool = stage.reserve_huge_pages(_RAM_BYTES // HUGE_BYTES)
    free_before = pool.free()
    memory = Memory(size_bytes=_RAM_BYTES, backing=Backing.HUGETLBFS, share=True, prealloc=True)
    qemu = stage.start(memory=memory)
    qemu.guest.fill(BALLOON, _SEED, stride_bytes=PAGE_BYTES)
    free = pool.free()
    with stage.attach(qemu, "zero-read,observe") as session:
        stage.inflate(session, granule=Granule.HUGE2M)
        stage.promise(
            f"the pool has exactly {format_size(BALLOON.size_bytes)} more",
            holds=(pool.free() - free) * HUGE_BYTES == BALLOON.size_bytes,
        )
        qemu.guest.write(BALLOON.start + PAGE_BYTES, _WORD)
        stage.guest("wrote to a ballooned huge page")
        stage.promise(
            "it is one violation, and one huge page",
            holds=session.status().touches.violations == 1
            and (pool.free() - free + 1) * HUGE_BYTES == BALLOON.size_bytes,
        )
        _wait_for_a_page(stage, session, qemu, pool)
        session.deflate(BALLOON, Granule.HUGE2M)
        qemu.guest.fill(BALLOON, _SEED, stride_bytes=PAGE_BYTES)
        stage.settle(session)
        stage.promise("after the deflate no window is left", holds=session.status().windows == 0)
    check = qemu.guest.verify(BALLOON, _SEED, stride_bytes=PAGE_BYTES)
    stage.promise(
        "detached, the pool is as it was, and the guest has its pages",
        holds=pool.free() == free and check.bad_lines == 0,
    )
    stage.check_owned(qemu.guest)
    stage.end(qemu)
    stage.promise("the guest gone, all of the pool is free", holds=pool.free() == free_before)


def _wait_for_a_page(stage: Stage, session: Session, qemu: Qemu, pool: HugePagePool) -> None:
    last = BALLOON.end - HUGE_BYTES
    with pool.lowered(pool.free()):
        pending = qemu.guest.start(f"write {last:x} {_WORD:x}")
        stage.wait_for(session, "a touch that waits", lambda: bool(session.held()))
        stage.host("the pool is empty: the touch of another ballooned page waits")
        (held,) = session.held()
        stage.promise("it is told as no-memory", holds=held.action is Action.NO_MEMORY)
        stage.promise("the guest lives, and waits", holds=not pending.is_there(0.1))
    stage.finish(session, pending)
    pending.wait()
    stage.guest("went on as soon as the pool had pages again")
    stage.promise("it has what it wrote", holds=qemu.guest.read(last) == _WORD)


def tmpfs_shared(stage: Stage) -> None:
    """Punch holes into shared memory, and see what another process writes there."""
    memory = Memory(size_bytes=_RAM_BYTES, backing=Backing.TMPFS, share=True)
    qemu = stage.start(memory=memory)
    qemu.guest.fill(BALLOON, _SEED, stride_bytes=PAGE_BYTES)
    with stage.attach(qemu, "zero-read,observe") as session:
        (block,) = session.layout.blocks
        file = open_backing_file(qemu.pid, block)
        try:
            before = os.fstat(file.fd).st_blocks
            stage.inflate(session)
            freed_bytes = (before - os.fstat(file.fd).st_blocks) * _BLOCK_BYTES
            stage.promise(
                f"the file has {format_size(BALLOON.size_bytes)} less, and nothing was stopped",
                holds=freed_bytes == BALLOON.size_bytes
                and session.status().stopped_us.zap_count == 0,
            )
            where = block.hva + BALLOON.start - file.file_start
            os.pwrite(file.fd, _WORD.to_bytes(4, "little"), where)
            stage.host("a process other than QEMU wrote to a ballooned page, as vhost-user does")
        finally:
            os.close(file.fd)
        got = qemu.guest.read(BALLOON.start)
        stage.guest(f"read {got:#x} there")
        stage.pump(session)
        (event,) = (e for e in stage.events if e.kind is EventKind.VIOLATION)
        stage.promise(
            "it is a violation by a device, and what was written is kept",
            holds=isinstance(event, TouchEvent)
            and event.role is Role.DEVICE_WRITER
            and got == _WORD,
        )
        qemu.guest.touch(pages(1, 3), Access.READ)
        qemu.guest.touch(pages(1, 3), Access.WRITE)
        stage.guest("read and then wrote to 3 more pages")
        stage.promise("each is trapped, twice", holds=session.status().touches.violations == 1 + 6)
        session.deflate(BALLOON, Granule.SMALL)
        qemu.guest.fill(BALLOON, _SEED, stride_bytes=PAGE_BYTES)
        stage.settle(session)
        stage.promise("after the deflate no window is left", holds=session.status().windows == 0)
    check = qemu.guest.verify(BALLOON, _SEED, stride_bytes=PAGE_BYTES)
    stage.promise("the guest has its pages", holds=check.bad_lines == 0)
    stage.check_owned(qemu.guest)
