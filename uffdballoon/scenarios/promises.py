# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that drive their own balloon, honestly and not, are reset, and are migrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.errors import LabError
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Access
from uffdballoon.scenarios.stage import BALLOON, pages

if TYPE_CHECKING:
    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

TOUCHES = 1000


def _give_up(stage: Stage, session: Session, qemu: Qemu, span: GpaRange = BALLOON) -> None:
    """Have the guest give a range up by its own balloon queue, and see that it is known."""
    qemu.guest.balloon_inflate(span)
    stage.settle(session)
    stage.guest(f"gave {format_size(span.size_bytes)} up through its balloon device")
    state = session.verify()
    stage.promise(
        "every page of it is in the ledger and gone from the host, as the guest itself counts",
        holds=state.ballooned_bytes == span.size_bytes
        and state.unaccounted_bytes == 0
        and not state.disagreements,
    )


def dishonest_guest(stage: Stage) -> None:
    """Touch 1,000 ballooned pages without a word, under `told` and under `cap`."""
    qemu = stage.start()
    touched = pages(0, TOUCHES)
    with stage.attach(qemu, "observe") as session:
        _give_up(stage, session, qemu)
        qemu.guest.touch(touched, Access.WRITE)
        stage.guest(f"wrote to {TOUCHES} of these pages, and deflated none")
        stage.settle(session)
        violations = [event for event in stage.events if event.kind is EventKind.VIOLATION]
        stage.host(f"{len(violations)} violations told")
        stage.promise(
            "told: each of them is a violation, counted and told with page, vCPU and time",
            holds=session.status().touches.violations == len(violations) == TOUCHES
            and {event.gpa for event in violations}
            == set(range(touched.start, touched.end, PAGE_BYTES))
            and all(event.vcpu == 0 and event.time_ns for event in violations),
        )
        qemu.guest.balloon_deflate(BALLOON)
        qemu.guest.touch(BALLOON, Access.WRITE)
        stage.settle(session)
        stage.promise(
            "told: what it deflates first, it may touch",
            holds=session.status().touches.violations == TOUCHES,
        )
    floor_bytes = BALLOON.size_bytes // 2
    terms = Terms(kind=ContractKind.CAP, floor_bytes=floor_bytes)
    with stage.attach(qemu, "zero-read,freeze", terms) as session:
        _give_up(stage, session, qemu)
        pending = qemu.guest.start_touch(BALLOON, Access.WRITE)
        stage.wait_for(session, "a frozen vCPU", lambda: bool(session.held()))
        state = session.status()
        stage.guest(f"wrote until it was held, with {format_size(state.ballooned_bytes)} left")
        stage.promise(
            "cap: what is above the floor is granted, and not a page more",
            holds=state.ballooned_bytes == floor_bytes,
        )
    pending.wait()
    stage.host("detached")
    stage.promise("detaching lets it go on", holds=True)
    stage.check_owned(qemu.guest)


def reboot_while_ballooned(stage: Stage) -> None:
    """Reset a guest whose balloon is full: its firmware and next kernel may use all of it."""
    qemu = stage.start(seabios=True)
    with stage.attach(qemu, "observe") as session:
        _give_up(stage, session, qemu)
        qemu.guest.reset()
        stage.guest("was reset, and has booted again")
        stage.wait_for_event(session, EventKind.RESET)
        state = session.status()
        stage.promise(
            "after the reset the balloon is empty, and no window is left",
            holds=state.ballooned_bytes == state.windows == 0,
        )
        qemu.guest.touch(BALLOON, Access.WRITE)
        stage.settle(session)
        stage.promise(
            "it uses what it had given up before: no violation",
            holds=session.status().touches.violations == 0,
        )
        _give_up(stage, session, qemu)
        qemu.guest.touch(pages(0, 3), Access.WRITE)
        stage.settle(session)
        stage.promise(
            "what it gives up anew is enforced as before",
            holds=session.status().touches.violations == 3,  # noqa: PLR2004
        )


def migrate_enforced(stage: Stage) -> None:
    """Migrate an enforced guest to a file, and start it again from that."""
    qemu = stage.start()
    image = qemu.directory / "migrated"
    with stage.attach(qemu, "zero-read,observe") as session:
        _give_up(stage, session, qemu)
        before = session.status()
        qemu.monitor.execute("migrate", uri=f"exec:cat > {image}")
        stage.wait_for(session, "the migration", lambda: _has_migrated(qemu))
        stage.settle(session)
        state = session.status()
        stage.host(
            f"migrated to a file of {format_size(image.stat().st_size)}; "
            f"its thread read {state.touches.host_reads} ballooned pages"
        )
        stage.promise(
            "the migration thread's reads are no violations, and give zeros",
            holds=state.touches.violations == before.touches.violations
            and state.touches.host_reads > 0,
        )
        stage.promise(
            "they cost no memory, and no page left the balloon",
            holds=state.ballooned_bytes == state.reclaimed_bytes == BALLOON.size_bytes,
        )
        qemu.monitor.execute("cont")
        qemu.guest.touch(pages(0, 3), Access.WRITE)
        stage.settle(session)
        stage.promise(
            "a source that goes on is held to its contract as before",
            holds=session.status().touches.violations == 3,  # noqa: PLR2004
        )
    stage.check_owned(qemu.guest)
    destination = stage.start_from(image, qemu.options)
    stage.check_owned(destination.guest)


def _has_migrated(qemu: Qemu) -> bool:
    state = qemu.monitor.execute("query-migrate").get("status")
    if state in ("failed", "cancelled"):
        raise LabError("the migration failed", why=qemu.log.strip())
    return bool(state == "completed")
