# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of a real guest's memory, as the session takes it and the commands show it."""

from __future__ import annotations

import array
import json
import os
import pty
import select
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import COMMAND, attached, refused, run
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, Gpa, GpaRange
from uffdballoon.model.blockstate import BlockState
from uffdballoon.model.granule import Granule
from uffdballoon.model.job import run_job
from uffdballoon.model.ram import Backing
from uffdballoon.model.sizes import format_size
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.model.blockmap import BlockMap

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
OWNED = GpaRange.of(32 << 20, 8 << 20)
WHOLE = GpaRange.of(64 << 20, 8 << 20)
PARTS = GpaRange.of(80 << 20, 6 << 20)
SMALL = GpaRange.of(96 << 20, 2 << 20)
UNUSED = GpaRange.of(128 << 20, 8 << 20)
_LONG_S = 3600.0
_PATIENCE_S = 30.0


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    return start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=RAM_BYTES)))


def _states(blocks: BlockMap, span: GpaRange) -> list[BlockState]:
    """List the states of the blocks of a range."""
    by_gpa = {
        gpa: state
        for region in blocks.regions
        for run, state in region.states()
        for gpa in range(run.start, run.end, HUGE_BYTES)
    }
    return [by_gpa[Gpa(gpa)] for gpa in range(span.start, span.end, HUGE_BYTES)]


def test_each_state_of_a_block_is_seen_on_a_real_guest(tcg: Qemu) -> None:
    guest = tcg.guest
    for span in (OWNED, WHOLE, PARTS, SMALL):
        guest.fill(span, 7)
    checksum = guest.checksum(OWNED)
    options = SessionOptions(pid=tcg.pid, qmp_path=str(tcg.qmp_path), max_windows=3)
    with Session(options) as session:

        def taken(recent_s: float = 0.0) -> BlockMap:
            return session.block_map(recent_s)

        assert _states(taken(), UNUSED) == [BlockState.ABSENT] * 4
        assert BlockState.OWNED_THP in _states(taken(), OWNED)
        # Two blocks in part; as windows run out, what lies between them is covered, too.
        edge = PARTS.end - HUGE_BYTES
        session.inflate(GpaRange.of(PARTS.start, 5 * PAGE_BYTES), Granule.SMALL, guest_agreed=True)
        session.inflate(GpaRange.of(edge, 7 * PAGE_BYTES), Granule.SMALL, guest_agreed=True)
        session.inflate(WHOLE, Granule.THP, guest_agreed=True)
        session.inflate(SMALL, Granule.SMALL, guest_agreed=True)
        assert _states(taken(), WHOLE) == [BlockState.BALLOONED] * 4
        assert _states(taken(), PARTS) == [BlockState.PARTLY, BlockState.ARMED, BlockState.PARTLY]
        (ram,) = taken().ram_blocks
        assert (ram.broken, ram.whole, ram.untouched) == (2, 5, RAM_BYTES // HUGE_BYTES - 7)

        guest.write(WHOLE.start, 5)
        guest.read(edge)
        assert _states(taken(_LONG_S), WHOLE)[0] is BlockState.TOUCHED
        assert _states(taken(_LONG_S), PARTS)[2] is BlockState.TOUCHED
        assert _states(taken(), WHOLE) == [BlockState.PARTLY] + [BlockState.BALLOONED] * 3
        (ram,) = taken().ram_blocks
        assert (ram.broken, ram.whole, ram.untouched) == (3, 4, RAM_BYTES // HUGE_BYTES - 7)
        # Granted one by one, they are pages of 4 KiB.
        guest.touch(SMALL, Access.WRITE)
        session.keep_up()
        assert _states(taken(), SMALL) == [BlockState.OWNED_4K]

        job = session.mapping(0.0)
        assert next(job) == 0.0  # a large guest takes many steps
        counts = run_job(job).counts()
        assert sum(counts.values()) == RAM_BYTES // HUGE_BYTES
        assert guest.read(WHOLE.start) == 5
    assert guest.checksum(OWNED) == checksum


def test_memory_of_a_file_is_seen_by_guest_address_wherever_it_is_mapped(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    memory = Memory(size_bytes=RAM_BYTES, backing=Backing.MEMFD, share=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    qemu.guest.fill(OWNED, 7)
    checksum = qemu.guest.checksum(OWNED)
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path))) as session:
        session.inflate(WHOLE, Granule.SMALL, guest_agreed=True)
        blocks = session.block_map(0.0)
        assert _states(blocks, WHOLE) == [BlockState.BALLOONED] * 4
        assert set(_states(blocks, OWNED)) <= {BlockState.OWNED_4K, BlockState.OWNED_THP}
        assert _states(blocks, UNUSED) == [BlockState.ABSENT] * 4
        assert sum(len(r.letters) for r in blocks.regions) == RAM_BYTES // HUGE_BYTES
        (ram,) = blocks.ram_blocks
        # The host's own blocks may lie otherwise: then the balloon's edges cut two of them.
        assert (ram.whole, ram.broken) in {(4, 0), (3, 2)}
    assert qemu.guest.checksum(OWNED) == checksum


def test_the_command_shows_the_map_as_text_json_and_picture(tcg: Qemu, tmp_path: Path) -> None:
    tcg.guest.fill(WHOLE, 7)
    refused(1, "map", tcg.pid)
    with attached(tcg):
        run("inflate", tcg.pid, "--gpa", WHOLE.start, "--size", "8M", "--guest-agreed")
        shown = json.loads(run("map", tcg.pid, "--json").stdout)
        assert set(shown) >= {"pid", "block_bytes", "ram_bytes", "states", "regions", "ram_blocks"}
        assert set(shown["states"]) == {state.value for state in BlockState}
        assert shown["states"]["ballooned"] == 4
        (ram,) = shown["ram_blocks"]
        assert set(ram) >= {"idstr", "size", "backing", "states", "broken", "whole", "untouched"}
        assert (ram["whole"], ram["broken"]) == (4, 0)
        runs = [run for region in shown["regions"] for run in region["runs"]]
        assert {"gpa": WHOLE.start, "size": WHOLE.size_bytes, "state": "ballooned"} in runs
        text = run("map", tcg.pid).stdout
        assert "BBBB" in text
        assert text.splitlines()[0] == f"{tcg.pid}, {format_size(shown['ram_blocks'][0]['size'])}"
        assert shown["vm"] == ""
        assert "\x1b" not in text
        picture = tmp_path / "map.png"
        assert run("map", tcg.pid, "--png", picture).returncode == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
        refused(2, "map", tcg.pid, "--png", tmp_path / "nowhere" / "map.png")
        once = run("top", tcg.pid, "--once")
        assert once.returncode == 0, once.stderr
        assert "in the balloon" in once.stdout
        assert "BBBB" in once.stdout
        refused(2, "top", tcg.pid)  # no terminal


class _Terminal:
    """A command on a terminal of its own."""

    def __init__(
        self, *arguments: object, term: str = "xterm-256color", columns: int = 120, lines: int = 40
    ) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            # Who starts the tests in the background ignores SIGINT, and so would the command.
            ["env", "--default-signal=INT", COMMAND, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": term, "COLUMNS": str(columns), "LINES": str(lines)},
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 1 << 16).decode(errors="replace")

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def end(self) -> int:
        """Wait for the command's end; return its exit code."""
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while self.process.poll() is None:
                assert time.monotonic() < deadline, self.seen
                if select.select([self._master], [], [], 0.1)[0]:
                    try:
                        self.seen += os.read(self._master, 1 << 16).decode(errors="replace")
                    except OSError:  # the other end is closed
                        break
            return self.process.wait(_PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._master)


def test_top_is_drawn_on_a_terminal_until_q(tcg: Qemu) -> None:
    with attached(tcg):
        run("inflate", tcg.pid, "--gpa", WHOLE.start, "--size", "8M", "--guest-agreed")
        terminal = _Terminal("top", tcg.pid, "--interval", "200ms")
        terminal.wait_for("8 MiB")
        terminal.wait_for("▀")
        tcg.guest.touch(GpaRange.of(WHOLE.start, 3 * PAGE_BYTES), Access.READ)
        terminal.wait_for("zero-read 3")
        terminal.press("q")
        assert terminal.end() == 0
    assert "Traceback" not in terminal.seen


def test_top_ends_cleanly_by_ctrl_c_and_when_the_manager_goes(tcg: Qemu) -> None:
    with attached(tcg) as manager:
        interrupted = _Terminal("top", tcg.pid)
        left = _Terminal("top", tcg.pid, "--interval", "200ms")
        interrupted.wait_for("in the balloon")
        left.wait_for("in the balloon")
        interrupted.process.send_signal(signal.SIGINT)
        assert interrupted.end() == 0
        manager.send_signal(signal.SIGTERM)
        assert left.end() == 0
    assert "no longer attached" in left.seen
    assert "Traceback" not in left.seen + interrupted.seen
    tcg.guest.ping()


def test_top_goes_on_a_terminal_that_can_nothing(tcg: Qemu) -> None:
    with attached(tcg):
        run("inflate", tcg.pid, "--gpa", WHOLE.start, "--size", "8M", "--guest-agreed")
        terminal = _Terminal(
            "top", tcg.pid, "--interval", "200ms", term="dumb", columns=80, lines=24
        )
        terminal.wait_for("BBBB")
        tcg.guest.touch(GpaRange.of(WHOLE.start, 3 * PAGE_BYTES), Access.READ)
        terminal.wait_for("zero-read 3")
        terminal.press("q")
        assert terminal.end() == 0
    assert "\x1b" not in terminal.seen
    assert max(map(len, terminal.seen.splitlines())) <= 80
    assert "Traceback" not in terminal.seen


def test_top_without_a_pid_shows_all_that_are_attached(
    tcg: Qemu, start_qemu: Callable[[QemuOptions], Qemu]
) -> None:
    other = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=128 << 20)))
    span = ("--gpa", WHOLE.start, "--size", "8M", "--guest-agreed")
    with attached(tcg):
        with attached(other):
            run("inflate", other.pid, *span)
            once = run("top", "--once")
            assert once.returncode == 0, once.stderr
            rows = {line.split()[0]: line for line in once.stdout.splitlines() if line.strip()}
            assert " 8 MiB " in rows[str(other.pid)]
            assert " 0 B " in rows[str(tcg.pid)]
            terminal = _Terminal("top", "--interval", "200ms", columns=80, lines=24)
            terminal.wait_for(str(other.pid))
            other.guest.touch(GpaRange.of(WHOLE.start, 3 * PAGE_BYTES), Access.READ)
            terminal.wait_for("3, 0/s")
        terminal.seen = ""
        while str(other.pid) in terminal.seen or str(tcg.pid) not in terminal.seen:
            terminal.seen = ""  # until a whole screen is without the one that was let go
            terminal.wait_for("attached")
            terminal.wait_for(str(tcg.pid))
        terminal.press("q")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.seen
    refused(2, "top")  # no terminal
    tcg.guest.ping()


_THP, _ZERO_PAGE = 1 << 22, 1 << 24
"""Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h)."""
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1
_BLOCK_PAGES = HUGE_BYTES // PAGE_BYTES


def _expected(pid: int, hva: int, ballooned: set[int]) -> BlockState:
    """Say what a block is by the kernel's own files and the pages that were given up of it."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        entries = array.array("Q", os.pread(pagemap.fileno(), _BLOCK_PAGES * 8, hva >> 9))
    huge = small = 0
    with Path("/proc/kpageflags").open("rb", buffering=0) as kpageflags:
        for entry in entries:
            if not entry & _PRESENT:
                continue
            (flags,) = array.array("Q", os.pread(kpageflags.fileno(), 8, (entry & _FRAME) * 8))
            if not flags & _ZERO_PAGE:
                huge, small = (huge + 1, small) if flags & _THP else (huge, small + 1)
    if ballooned:
        return BlockState.BALLOONED if len(ballooned) == _BLOCK_PAGES else BlockState.PARTLY
    if not huge + small:
        return BlockState.ABSENT
    return BlockState.OWNED_THP if huge >= small else BlockState.OWNED_4K


def test_each_cell_is_what_pagemap_says(tcg: Qemu) -> None:
    for span in (OWNED, WHOLE, PARTS, SMALL):
        tcg.guest.fill(span, 7)
    with Session(SessionOptions(pid=tcg.pid, qmp_path=str(tcg.qmp_path))) as session:
        session.inflate(WHOLE, Granule.THP, guest_agreed=True)
        session.inflate(SMALL, Granule.SMALL, guest_agreed=True)
        for number in range(3):
            some = GpaRange.of(PARTS.start + number * HUGE_BYTES, (7 + number) * PAGE_BYTES)
            session.inflate(some, Granule.SMALL, guest_agreed=True)
        tcg.guest.touch(SMALL, Access.WRITE)  # granted one by one: pages of 4 KiB
        session.keep_up()
        given_up = {
            page
            for start, count in run_job(session.recording()).runs
            for page in range(start, start + count)
        }
        tcg.monitor.execute("stop")  # nothing is touched while two look
        seen = [
            (run, state)
            for region in session.block_map(0.0).regions
            for run, state in region.states()
        ]
        (block,) = session.layout.blocks
        compared = Counter[BlockState]()
        for run, state in seen:
            for gpa in range(run.start, run.end, HUGE_BYTES):
                first = gpa // PAGE_BYTES
                pages = given_up.intersection(range(first, first + _BLOCK_PAGES))
                if gpa:  # the first block has holes where firmware lies
                    assert state is _expected(tcg.pid, block.hva + gpa, pages), hex(gpa)
                    compared[state] += 1
        tcg.monitor.execute("cont")
        assert compared.total() == block.size_bytes // HUGE_BYTES - 1
        assert set(compared) == {
            *(BlockState.ABSENT, BlockState.OWNED_THP, BlockState.OWNED_4K),
            *(BlockState.BALLOONED, BlockState.PARTLY),
        }
