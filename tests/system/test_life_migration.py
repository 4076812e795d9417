# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations of a guest whose balloon is enforced, and what both sides have afterwards."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.life import Served
from tests.support.marks import REAL_QEMU
from tests.support.yielding import Destination, migration_of, set_capability
from uffdballoon.lab.microguest import MicroGuest
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.records.events import EventKind, Notice
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = REAL_QEMU

RAM = Memory(size_bytes=192 << 20)
BALLOON = GpaRange.of(64 << 20, 4 << 20)
FIRST = GpaRange.of(BALLOON.start, PAGE_BYTES)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0xB0B


class Waiting(Qemu):
    """A machine that runs no guest before one has come."""

    def _connect(self) -> None:
        self.guest = MicroGuest(self.console_path)


@pytest.fixture
def source(accel: Accel, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=accel, memory=RAM))
    qemu.guest.fill(OWNED, SEED)
    return qemu


def give_up(served: Served, qemu: Qemu) -> None:
    qemu.guest.balloon_inflate(BALLOON)
    served.serve()
    served.check(BALLOON.size_bytes)


def check_enforced(served: Served, qemu: Qemu) -> None:
    """See that the next touch is a violation, and that the guest's own is as it was."""
    served.check(BALLOON.size_bytes)
    assert served.violations == 0
    assert served.session.status().reclaimed_bytes == BALLOON.size_bytes
    qemu.guest.touch(FIRST, Access.WRITE)
    assert served.violations == 1
    assert served.session.verify().disagreements == ()
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_migration_that_is_cancelled_leaves_all_as_it_was(source: Qemu, tmp_path: Path) -> None:
    with contextlib.closing(Destination(tmp_path / "to")) as destination, Served(source) as served:
        give_up(served, source)
        source.monitor.execute("migrate", uri=destination.uri)
        served.serve_until(lambda: migration_of(source) == "active")
        source.monitor.execute("migrate_cancel")
        destination.go_on()
        served.serve_until(lambda: migration_of(source) == "cancelled")
        served.wait_for(EventKind.MIGRATION)
        check_enforced(served, source)


def test_a_guest_that_is_saved_to_a_file_goes_on_on_both_sides(
    source: Qemu, tmp_path: Path, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    image = tmp_path / "saved"
    with Served(source) as served:
        give_up(served, source)
        source.monitor.execute("migrate", uri=f"exec:cat > {image}")
        served.serve_until(lambda: migration_of(source) == "completed")
        source.monitor.execute("cont")
        served.wait_for(EventKind.RESUMED)
        check_enforced(served, source)
    restored = start_qemu(replace(source.options, extra=("-incoming", f"exec:cat {image}")))
    assert restored.guest.verify(OWNED, SEED).bad_lines == 0
    with Served(restored) as served:
        # Which pages the guest gave up elsewhere nobody can tell; what it gives up now, we can.
        found = served.session.verify()
        assert (found.ballooned_bytes, found.unaccounted_bytes) == (0, BALLOON.size_bytes)
        restored.guest.balloon_deflate(BALLOON)
        give_up(served, restored)
        check_enforced(served, restored)


def test_a_postcopy_migration_leaves_both_sides_what_they_own(source: Qemu, tmp_path: Path) -> None:
    uri = f"unix:{tmp_path / 'to'}"
    with Waiting(replace(source.options, extra=("-incoming", "defer"))) as target:
        for each in (source, target):
            set_capability(each, "postcopy-ram")
        target.monitor.execute("migrate-incoming", uri=uri)
        with Served(source) as served:
            give_up(served, source)
            source.monitor.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
            source.monitor.execute("migrate", uri=uri)
            served.serve_until(lambda: migration_of(source) == "active")
            source.monitor.execute("migrate-start-postcopy")
            served.serve_until(lambda: migration_of(source) == "completed")
            notices = [event for event in served.told if isinstance(event, Notice)]
            assert "postcopy-active" in [event.why for event in notices]
            served.check(BALLOON.size_bytes)
            assert served.violations == 0
            assert not served.has_told(EventKind.YIELDED)
        assert target.guest.verify(OWNED, SEED).bad_lines == 0
        with Served(target) as served:
            served.serve_until(lambda: migration_of(target) == "completed")
            target.guest.balloon_deflate(BALLOON)
            give_up(served, target)
            check_enforced(served, target)


def test_a_destination_that_is_attached_to_yields_until_postcopy_has_ended(
    source: Qemu, tmp_path: Path
) -> None:
    uri = f"unix:{tmp_path / 'to'}"
    with Waiting(replace(source.options, extra=("-incoming", "defer"))) as target:
        for each in (source, target):
            set_capability(each, "postcopy-ram")
        with Served(target) as served:
            served.session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
            served.serve()
            target.monitor.execute("migrate-incoming", uri=uri)
            source.monitor.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
            source.monitor.execute("migrate", uri=uri)
            served.wait_for(EventKind.YIELDED)
            served.serve_until(lambda: migration_of(source) == "active")
            source.monitor.execute("migrate-start-postcopy")
            served.wait_for(EventKind.TAKEN_UP)
            assert migration_of(source) == migration_of(target) == "completed"
            assert served.violations == 0
            assert target.guest.verify(OWNED, SEED).bad_lines == 0
            served.session.deflate(BALLOON, Granule.SMALL)
            give_up(served, target)
            check_enforced(served, target)
