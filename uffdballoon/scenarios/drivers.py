# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux guests and their balloon driver: busy, honest, out of memory, and followed by another."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.lab.linux_qemu import LinuxQemu
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

CYCLES = 20
QUICK_CYCLES = 3
_RAM_BYTES = 1 << 30
_BALLOON_BYTES = 512 << 20
_WORK_BYTES = 192 << 20
_SMALL_RAM_BYTES = 768 << 20
_SMALL_BALLOON_BYTES = 384 << 20
_HUNGER_BYTES = 480 << 20
"""More than the balloon leaves, and less than there is without it."""
_NEXT_RAM_BYTES = 640 << 20
_NEXT_BALLOON_BYTES = 192 << 20
_NEXT_WORK_BYTES = 64 << 20
_SEED = 0x5EED


def _reach(stage: Stage, session: Session, size_bytes: int) -> None:
    """Ask the guest's driver for a size, and serve the session until it is there."""
    session.ask_balloon(size_bytes)
    stage.wait_for(
        session,
        f"the guest at {format_size(size_bytes)}",
        lambda: session.balloon_progress().state is ProgressState.REACHED,
    )
    stage.settle(session)


def _agrees(stage: Stage, session: Session, ballooned_bytes: int) -> bool:
    state = session.verify()
    found = (state.ballooned_bytes, state.unaccounted_bytes, state.disagreements)
    if found == (ballooned_bytes, 0, ()):
        return True
    stage.host(f"ledger and guest disagree: {state}; {session.status().observed}")
    return False


def _violations(session: Session) -> int:
    return session.status().touches.violations


def honest_guest(stage: Stage) -> None:
    """Inflate and deflate twenty times by half of all memory, while a workload runs."""
    cycles = QUICK_CYCLES if stage.quick else CYCLES
    qemu = stage.start_linux(_RAM_BYTES)
    work = qemu.guest.start(f"guestwork memory {_WORK_BYTES} {_SEED} 3600")
    work.read_line()
    stage.guest(f"works on {format_size(_WORK_BYTES)}, and keeps account of every word in it")
    with stage.attach(qemu, "observe") as session:
        for number in range(1, cycles + 1):
            _reach(stage, session, _RAM_BYTES - _BALLOON_BYTES)
            gave_up = _agrees(stage, session, _BALLOON_BYTES)
            _reach(stage, session, _RAM_BYTES)
            took_back = _agrees(stage, session, 0) and session.status().windows == 0
            if number in (1, cycles) or not (gave_up and took_back):
                stage.promise(
                    f"cycle {number}: {format_size(_BALLOON_BYTES)} are in the ledger to the page, "
                    "and gone from the host",
                    holds=gave_up,
                )
                stage.promise(
                    f"cycle {number}: after the deflate the ledger is empty, and no window is left",
                    holds=took_back,
                )
        seen = session.status().observed
        stage.host(
            f"{seen.inflated_pages} pages given up, {seen.deflated_pages} taken back; "
            f"{seen.lost_records} records lost; trapped within {seen.arm_us_max // 1000} ms"
        )
        stage.promise("an honest guest is never called a violator", holds=_violations(session) == 0)
        qemu.guest.check("killall -TERM guestwork")  # the agent, init, does not mind
        counts = dict(re.findall(r"(\w+)=(\d+)", work.wait().output))
        stage.guest(f"wrote {counts['written']} pages meanwhile; {counts['bad']} words are wrong")
        stage.promise("it lost no byte", holds=counts["bad"] == "0")


def guest_oom(stage: Stage) -> None:
    """Let a ballooned guest run out of memory, with and without deflate-on-oom."""
    for deflates in (True, False):
        qemu = stage.start_linux(_SMALL_RAM_BYTES, deflate_on_oom=deflates)
        with stage.attach(qemu, "observe") as session:
            _reach(stage, session, _SMALL_RAM_BYTES - _SMALL_BALLOON_BYTES)
            pending = qemu.guest.start(f"guestwork hog {_HUNGER_BYTES}")
            stage.guest(
                f"takes {format_size(_HUNGER_BYTES)} of the "
                f"{format_size(_SMALL_RAM_BYTES - _SMALL_BALLOON_BYTES)} that are left to it"
            )
            stage.finish(session, pending)
            stage.settle(session)
            fed = pending.wait().status == 0
            _check_oom(stage, qemu, session, deflates=deflates, fed=fed)


def _check_oom(
    stage: Stage, qemu: LinuxQemu, session: Session, *, deflates: bool, fed: bool
) -> None:
    name = "with deflate-on-oom" if deflates else "without"
    state = session.verify()
    stage.host(
        f"{name}: {'it got it' if fed else 'its kernel killed the process'}; "
        f"{format_size(state.ballooned_bytes)} are in the balloon"
    )
    if deflates:
        stage.promise(
            f"{name}: the driver took back what was needed, and told before",
            holds=fed and state.ballooned_bytes < _SMALL_BALLOON_BYTES,
        )
    else:
        stage.promise(
            f"{name}: the balloon stays as it was",
            holds=not fed and state.ballooned_bytes == _SMALL_BALLOON_BYTES,
        )
    stage.promise(f"{name}: no touch was a violation", holds=_violations(session) == 0)
    stage.promise(
        f"{name}: ledger, page tables and the guest's own count agree",
        holds=state.unaccounted_bytes == 0 and not state.disagreements,
    )
    stage.promise(
        f"{name}: the guest is alive", holds=qemu.guest.check("echo alive").strip() == "alive"
    )


def kexec(stage: Stage) -> None:
    """Start another kernel from the one that runs, which knows nothing of the balloon."""
    qemu = stage.start_linux(_NEXT_RAM_BYTES, next_kernel=True)
    left_bytes = _NEXT_RAM_BYTES - _NEXT_BALLOON_BYTES
    with stage.attach(qemu, "zero-read,observe") as session:
        _reach(stage, session, left_bytes)
        stage.guest(f"its driver gave {format_size(_NEXT_BALLOON_BYTES)} up")
        qemu.guest.kexec()
        stage.guest("started another kernel by kexec, of which nothing tells the host")
        work = qemu.guest.start(f"guestwork memory {_NEXT_WORK_BYTES} {_SEED} 3600")
        work.read_line()
        _reach(stage, session, left_bytes)
        stage.host(f"{_violations(session)} violations told")
        stage.promise(
            "told: what the next kernel touches of the balloon is a violation, and is granted",
            holds=_violations(session) > 0,
        )
        found = session.verify()
        stage.promise(
            "what it has not touched yet stays in the ledger, beside what its own driver gave up",
            holds=not found.disagreements
            and found.unaccounted_bytes == _NEXT_BALLOON_BYTES - found.ballooned_bytes <= 0,
        )
        _reach(stage, session, _NEXT_RAM_BYTES)
    with stage.attach(qemu, "freeze") as session:
        stage.promise("attached anew, nothing is held against it", holds=_agrees(stage, session, 0))
        _reach(stage, session, left_bytes)
        stage.promise(
            "and what it gives up is enforced",
            holds=_agrees(stage, session, _NEXT_BALLOON_BYTES) and not _violations(session),
        )
        _reach(stage, session, _NEXT_RAM_BYTES)
    qemu.guest.check("killall -TERM guestwork")
    stage.promise("what it works on has its contents", holds="bad=0" in work.wait().output)
