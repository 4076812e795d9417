# SPDX-License-Identifier: GPL-2.0-or-later
"""What windows cut of huge pages stays cut: it is bounded, however often somebody attaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from uffdballoon.balloon.mappings import cut_huge_mappings
from uffdballoon.host.procfs import read_mappings
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [*REAL_QEMU, pytest.mark.takes_huge_pages]

RAM_BYTES = 128 << 20
OWNED = GpaRange.of(16 << 20, 2 << 20)
SEED = 0xC07
FIRST, LAST = 32 << 20, 128 << 20


@pytest.fixture(params=[True, False], ids=["shared", "private"])
def guest(request: pytest.FixtureRequest) -> Iterator[Qemu]:
    memory = Memory(
        size_bytes=RAM_BYTES, backing=Backing.HUGETLBFS, share=request.param, prealloc=True
    )
    with (
        HugePagePool(RAM_BYTES // HUGE_BYTES),
        Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu,
    ):
        qemu.guest.fill(OWNED, SEED, stride_bytes=PAGE_BYTES)
        yield qemu


def _cut_by_scattered_windows(qemu: Qemu, limit: int | None, phase: int) -> int:
    """Attach, balloon every second huge page, touch them all, and let go."""
    options = SessionOptions(
        pid=qemu.pid,
        qmp_path=str(qemu.qmp_path),
        observer=ObserverKind.DIRECT,
        policy=parse_policy("observe"),
        max_huge_mappings=limit,
    )
    pages = range(FIRST + phase * HUGE_BYTES, LAST, 2 * HUGE_BYTES)
    with Session(options) as session:
        for gpa in pages:
            session.inflate(GpaRange.of(gpa, HUGE_BYTES), Granule.HUGE2M, guest_agreed=True)
        qemu.guest.touch(
            GpaRange.of(pages[0], LAST - pages[0]), Access.WRITE, stride_bytes=2 * HUGE_BYTES
        )
        session.settle()
        state = session.status()
        assert state.touches.violations == len(pages)
        assert state.ballooned_bytes == state.windows == 0
        blocks = session.layout.blocks
    return cut_huge_mappings(read_mappings(qemu.pid), blocks)


def test_the_next_attach_cuts_where_the_last_one_did(guest: Qemu) -> None:
    first = _cut_by_scattered_windows(guest, None, 0)
    # All borders between the pages of this part are cut now, and there are no others in it.
    assert 0 < first <= (LAST - FIRST) // HUGE_BYTES
    for phase in (1, 0, 1):
        assert _cut_by_scattered_windows(guest, None, phase) == first
    assert guest.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_there_are_never_more_than_the_limit(guest: Qemu) -> None:
    limit = 12
    for phase in (0, 1, 0, 1):
        assert 0 < _cut_by_scattered_windows(guest, limit, phase) <= limit
    assert guest.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
