# SPDX-License-Identifier: GPL-2.0-or-later
"""What else may go wrong around a manager: its monitor, its clients, the host's limits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.forked import ForkedManager, Phase
from tests.support.marks import REAL_QEMU
from tests.support.moments import DIRECT, OWNED, SEED
from tests.support.resources import becomes, links_of, resources_of, userfaultfd_mappings
from uffdballoon.errors import WindowBudgetError
from uffdballoon.host.process import duplicate_fd
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.events import EventKind, Notice
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from uffdballoon.lab.hugepages import HugePagePool

pytestmark = REAL_QEMU

_PATIENCE_S = 20.0
_EVENTS_KEPT = 1 << 16


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


@contextlib.contextmanager
def _serving(qemu: Qemu, *arguments: object) -> Iterator[ForkedManager]:
    """Run a manager that serves; it detaches at the end, and nothing is left."""
    with ForkedManager(qemu.pid, *arguments) as manager:
        assert manager.reach(Phase.SERVE), manager.said
        yield manager
        manager.signal(signal.SIGTERM)
        assert manager.wait() == 0, manager.said
        assert "Traceback" not in manager.said
    qemu.guest.ping(timeout_s=_PATIENCE_S)
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0
    assert userfaultfd_mappings(qemu.pid) == 0


def _status(manager: ForkedManager) -> dict[str, Any]:
    with manager.ask("status") as connection, connection.makefile("rb") as lines:
        answer: dict[str, Any] = json.loads(lines.readline())["result"]
    return answer


def _sockets_of(pid: int) -> dict[int, str]:
    return {number: link for number, link in links_of(pid).items() if link.startswith("socket:")}


def test_a_monitor_that_is_cut_off_costs_no_enforcement(tcg: Qemu, chance: random.Random) -> None:
    before = _sockets_of(tcg.pid)
    with _serving(tcg, "--qmp", tcg.qmp_path) as manager:
        manager.inflate(DIRECT)
        pidfd = os.pidfd_open(tcg.pid)
        (ours,) = _wait_for(lambda: _sockets_of(tcg.pid).items() - before.items())
        with socket.socket(fileno=duplicate_fd(pidfd, ours[0], pid=tcg.pid)) as theirs:
            time.sleep(chance.uniform(0, 0.02))
            theirs.shutdown(socket.SHUT_RDWR)
        os.close(pidfd)
        tcg.guest.write(DIRECT.start, 5)
        assert _status(manager)["touches"]["violations"] == 1
        _wait_for(lambda: _sockets_of(tcg.pid).items() - before.items() - {ours})
        tcg.guest.write(DIRECT.start + PAGE_BYTES, 5)
        assert _status(manager)["touches"]["violations"] == 2
    _wait_for(lambda: _sockets_of(tcg.pid) == before)


def test_clients_that_vanish_cost_nothing(tcg: Qemu, chance: random.Random) -> None:
    before = resources_of(tcg.pid)
    with _serving(tcg) as manager:
        own = _sockets_of(manager.pid)
        manager.inflate(DIRECT)
        followers = []
        for turn in range(60):
            verb = chance.choice(["status", "follow", "map", "inflate", "nonsense"])
            connection = manager.ask(verb)
            connection.send(b'{"v":1,"ver'[: chance.randrange(11)])
            if chance.random() < 0.3:
                followers.append(connection)
            else:
                connection.close()
            tcg.guest.write(DIRECT.start + turn * PAGE_BYTES, turn)
        assert _status(manager)["touches"]["violations"] == 60
        for connection in followers:
            connection.close()
        _wait_for(lambda: _sockets_of(manager.pid) == own)
    assert becomes(tcg.pid, before)


# The limit is the host's, and a test run that has loaded all tests has more mappings than QEMU.
@pytest.mark.campaign
def test_a_host_without_mappings_to_spare_is_a_named_error(tcg: Qemu) -> None:
    with _few_mappings(tcg), Session(SessionOptions(pid=tcg.pid)) as session:
        done_bytes = 0
        with contextlib.suppress(WindowBudgetError):
            for gpa in range(DIRECT.start, DIRECT.start + (128 << 20), 4 * HUGE_BYTES):
                if gpa + HUGE_BYTES > 192 << 20:
                    break
                span = GpaRange.of(gpa, PAGE_BYTES)
                session.inflate(span, Granule.SMALL, guest_agreed=True)
                done_bytes += PAGE_BYTES
                tcg.guest.write(gpa, 5)
        assert session.disagreements() == []
        assert session.status().touches.violations == done_bytes // PAGE_BYTES
    tcg.guest.ping(timeout_s=_PATIENCE_S)
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0
    assert userfaultfd_mappings(tcg.pid) == 0


@contextlib.contextmanager
def _few_mappings(qemu: Qemu) -> Iterator[None]:
    """Leave QEMU room for eight mappings more; other processes may do with less for a moment."""
    used = len(Path(f"/proc/{qemu.pid}/maps").read_text().splitlines())
    with HOST.settings({"/proc/sys/vm/max_map_count": str(used + 8)}):
        yield


def test_an_empty_pool_of_huge_pages_leaves_nobody_asleep(huge_pages: HugePagePool) -> None:
    memory = Memory(size_bytes=128 << 20, backing=Backing.HUGETLBFS, share=True)
    span = GpaRange.of(64 << 20, 4 * HUGE_BYTES)
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu:
        qemu.guest.fill(OWNED, SEED)
        with Session(SessionOptions(pid=qemu.pid)) as session:
            session.inflate(span, Granule.HUGE2M, guest_agreed=True)
            with huge_pages.lowered(huge_pages.free()):
                # Shared memory keeps its reservation: a page of the balloon is there to be had.
                qemu.guest.write(span.start, 5)
                assert session.status().touches.violations == 1
        qemu.guest.ping(timeout_s=_PATIENCE_S)
        assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_ring_that_nobody_empties_drops_events_and_counts_them(tcg: Qemu) -> None:
    rounds = 2 + _EVENTS_KEPT // (DIRECT.size_bytes // PAGE_BYTES)
    with Session(SessionOptions(pid=tcg.pid)) as session:
        for _ in range(rounds):
            session.inflate(DIRECT, Granule.SMALL, guest_agreed=True)
            tcg.guest.touch(DIRECT, Access.WRITE)
        state = session.status()
        events = [event for batch in iter(session.drain_events, []) for event in batch]
    told = sum(event.kind is EventKind.VIOLATION for event in events)
    assert [event.count for event in events if isinstance(event, Notice)] == [state.events_dropped]
    violations = rounds * DIRECT.size_bytes // PAGE_BYTES
    assert state.touches.violations == violations
    assert told == _EVENTS_KEPT
    assert state.events_dropped == violations - told
    tcg.guest.ping(timeout_s=_PATIENCE_S)
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def _wait_for(condition: Callable[[], Any]) -> Any:  # noqa: ANN401 - what it waited for
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
