# SPDX-License-Identifier: GPL-2.0-or-later
"""A real guest of two NUMA nodes: counts and direct inflates of each."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from tests.system.test_fragmentation import serve_until_judged, serve_until_stopped
from uffdballoon.cli.text.changes import progress_line
from uffdballoon.errors import RangeError
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.fragmentation import KEEP_GUEST_PERFORMANCE, FragmentationLimit
from uffdballoon.model.granule import Granule
from uffdballoon.model.job import run_job
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

NODE_BYTES = 96 << 20
OWNED = (GpaRange.of(32 << 20, 1 << 20), GpaRange.of(NODE_BYTES + (4 << 20), 1 << 20))
FIRST = GpaRange.of(64 << 20, 4 << 20)
SECOND = GpaRange.of(NODE_BYTES + (64 << 20), 8 << 20)
SEED = 0x0DE
_PATIENCE_S = 60.0


@pytest.fixture(params=[None, Backing.MEMFD], ids=["anon", "memfd"])
def two_nodes(request: pytest.FixtureRequest, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    memory = Memory(
        size_bytes=2 * NODE_BYTES, nodes=2, backing=request.param, share=request.param is not None
    )
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    for span in OWNED:
        qemu.guest.fill(span, SEED)
    return qemu


def is_whole(qemu: Qemu) -> bool:
    return all(qemu.guest.verify(span, SEED).bad_lines == 0 for span in OWNED)


def attach(qemu: Qemu, policy: str, terms: Terms) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            policy=parse_policy(policy),
            terms=terms,
        )
    )


def ballooned(session: Session) -> list[int]:
    return [node.ballooned_bytes for node in session.status().nodes]


def test_what_the_guest_gives_up_is_counted_on_its_node(two_nodes: Qemu) -> None:
    guest = two_nodes.guest
    for span in (FIRST, SECOND):
        guest.fill(span, SEED, stride_bytes=PAGE_BYTES)
    with Session(SessionOptions(pid=two_nodes.pid, qmp_path=str(two_nodes.qmp_path))) as session:
        before = [sum(node.host_nodes.values()) for node in session.status().nodes]
        assert all(size >= span.size_bytes for size, span in zip(before, OWNED, strict=True))
        guest.balloon_inflate(FIRST)
        guest.balloon_inflate(GpaRange.of(SECOND.start, 2 * PAGE_BYTES), stride_bytes=HUGE_BYTES)
        session.settle()
        first, second = session.status().nodes
        assert (first.node, second.node) == (0, 1)
        assert first.ballooned_bytes == first.reclaimed_bytes == FIRST.size_bytes
        assert second.ballooned_bytes == second.reclaimed_bytes == 2 * PAGE_BYTES
        assert second.broken_blocks == 2
        # The host's own blocks may lie otherwise: then an edge of the balloon cuts two of them.
        assert (first.broken_blocks, first.whole_blocks) in {(0, 2), (2, 1)}
        assert second.whole_blocks == 0
        total = session.status().fragmentation
        assert sum(node.broken_blocks for node in (first, second)) == total.broken_blocks
        assert sum(node.whole_blocks for node in (first, second)) == total.whole_blocks
        assert sum(node.untouched_blocks for node in (first, second)) == total.untouched_blocks
        assert sum(n.ballooned_bytes for n in (first, second)) == session.status().ballooned_bytes
        assert second.ram_bytes == NODE_BYTES
        assert [block.numa_node for block in session.status().ram_blocks] in ([0, 1], [1, 0])
    assert is_whole(two_nodes)


def test_whole_granules_of_a_node_are_taken_from_its_end_and_given_back(two_nodes: Qemu) -> None:
    with Session(SessionOptions(pid=two_nodes.pid, qmp_path=str(two_nodes.qmp_path))) as session:
        for size_bytes in (4 << 20, 8 << 20):
            done = session.inflate_node(1, Granule.THP, size_bytes=size_bytes, guest_agreed=True)
            assert done.done_bytes == size_bytes
        assert ballooned(session) == [0, 12 << 20]
        assert session.verify().disagreements == ()
        (run,) = run_job(session.recording()).runs
        assert run[0] * PAGE_BYTES >= 2 * NODE_BYTES - (14 << 20)  # a memfd's blocks may lie askew
        done = session.deflate_node(1, Granule.THP, 8 << 20)
        assert done.done_bytes == 8 << 20
        (run,) = run_job(session.recording()).runs
        assert run[0] * PAGE_BYTES >= 2 * NODE_BYTES - (6 << 20)
        with pytest.raises(RangeError, match="has not"):
            session.inflate_node(1, Granule.THP, size_bytes=NODE_BYTES, guest_agreed=True)
        with pytest.raises(RangeError, match="has not"):
            session.deflate_node(0, Granule.SMALL, None)
        assert ballooned(session) == [0, 4 << 20]
        session.deflate_node(1, Granule.SMALL, None)
        assert ballooned(session) == [0, 0]
    assert is_whole(two_nodes)


def test_a_limit_holds_for_a_nodes_inflate_as_a_whole(two_nodes: Qemu) -> None:
    options = SessionOptions(
        pid=two_nodes.pid, qmp_path=str(two_nodes.qmp_path), fragmentation=KEEP_GUEST_PERFORMANCE
    )
    with Session(options) as session:
        with pytest.raises(RangeError, match="break"):
            session.inflate_node(1, Granule.SMALL, size_bytes=3 * PAGE_BYTES, guest_agreed=True)
        assert ballooned(session) == [0, 0]
    assert is_whole(two_nodes)


def test_a_floor_of_a_node_holds_there_and_nowhere_else(two_nodes: Qemu) -> None:
    terms = Terms(kind=ContractKind.CAP, node_floors=((1, 6 << 20),))
    with attach(two_nodes, "zero-read,freeze", terms) as session:
        for span in (FIRST, SECOND):
            two_nodes.guest.balloon_inflate(span)
        session.settle()
        assert [node.floor_bytes for node in session.status().nodes] == [0, 6 << 20]
        two_nodes.guest.touch(FIRST, Access.WRITE)
        assert ballooned(session) == [0, SECOND.size_bytes]
        pending = two_nodes.guest.start_touch(SECOND, Access.WRITE)
        left = []
        deadline = time.monotonic() + _PATIENCE_S
        while not session.held():
            assert time.monotonic() < deadline
            left.append(ballooned(session)[1])
            session.drain_events()
        assert min([*left, ballooned(session)[1]]) == 6 << 20
        state = session.status()
        granted_bytes = FIRST.size_bytes + SECOND.size_bytes - (6 << 20)
        assert state.touches.granted == granted_bytes // PAGE_BYTES
        assert state.nodes[1].reclaimed_bytes == 6 << 20
        assert not state.nodes[1].below_floor
        assert not pending.is_there(0.1)
    pending.wait()
    assert is_whole(two_nodes)


def test_a_limit_of_a_node_is_for_that_node_alone(two_nodes: Qemu) -> None:
    limit = FragmentationLimit(max_broken_blocks=None, node_max_broken=((1, 1),))
    first, second = (GpaRange.of(span.start, 4 * PAGE_BYTES) for span in (FIRST, SECOND))
    options = SessionOptions(
        pid=two_nodes.pid, qmp_path=str(two_nodes.qmp_path), fragmentation=limit
    )
    with Session(options) as session:
        session.ask_balloon(NODE_BYTES)
        two_nodes.guest.balloon_inflate(first, stride_bytes=HUGE_BYTES // 2)
        assert serve_until_judged(session) == []
        assert session.balloon_progress().state is ProgressState.MOVING
        two_nodes.guest.balloon_inflate(second, stride_bytes=HUGE_BYTES)
        (event,) = serve_until_stopped(session)
        assert (event.node, event.broken_blocks, event.limit_blocks) == (1, 4, 1)
        progress = session.balloon_progress()
        assert progress.state is ProgressState.STOPPED
        assert "of node 1" in progress.why
        nodes = session.status().nodes
        assert [node.limit_blocks for node in nodes] == [None, 1]
        assert nodes[1].counted_blocks == 4
        assert session.ask_balloon(NODE_BYTES).state is ProgressState.STOPPED
        with pytest.raises(RangeError, match="of node 1"):
            session.inflate_node(1, Granule.SMALL, size_bytes=PAGE_BYTES, guest_agreed=True)
        session.inflate_node(0, Granule.SMALL, size_bytes=PAGE_BYTES, guest_agreed=True)
    assert is_whole(two_nodes)


def test_the_commands_take_floors_and_limits_of_nodes(two_nodes: Qemu) -> None:
    pid, qmp = two_nodes.pid, ("--qmp", two_nodes.qmp_path)
    cap = ("--contract", "cap", "--node-floor", "1=4M")
    too_much = ("--contract", "cap", "--node-floor", "1=97M")
    assert "no memory on node 2" in refused(2, "attach", pid, *qmp, *cap, "--node-floor", "2=4M")
    assert "it has 96 MiB" in refused(2, "attach", pid, *qmp, *too_much)
    assert "twice" in refused(2, "attach", pid, *qmp, *cap, "--node-floor", "1=5M")
    assert "--contract cap" in refused(2, "attach", pid, *qmp, "--node-floor", "1=4M")
    refused(2, "attach", pid, *qmp, "--contract", "cap", "--node-floor", "4M")
    refused(2, "attach", pid, *qmp, "--node-max-broken", "7=1")
    refused(2, "attach", pid, *qmp, "--node-max-broken", "1=1", "--keep-guest-performance")
    refused(2, "attach", pid, "--qmp", "none", "--node-max-broken", "1=1")
    two_nodes.guest.ping()
    more = ("--policy", "observe", "--node-max-broken", "0=4M", "--on-exit", "hold")
    with attached(two_nodes, *cap, *more):
        span = ("--gpa", hex(SECOND.start), "--size", "8M", "--guest-agreed")
        assert run("inflate", pid, *span).returncode == 0
        (first, second) = status_of(two_nodes)["nodes"]
        assert (first["limit_blocks"], second["limit_blocks"]) == (2, None)
        assert second["floor_bytes"] == 4 << 20
        assert "floor 4 MiB (kept)" in run("status", pid).stdout
    with attached(two_nodes, *cap, *more):  # the first was killed: its traps were held
        two_nodes.guest.touch(SECOND, Access.WRITE)
        state = status_of(two_nodes)
        assert state["uffd_method"] == "kept"
        assert state["touches"]["granted"] == state["touches"]["violations"] == 1024
        assert [node["below_floor"] for node in state["nodes"]] == [False, True]
        assert run("detach", pid).returncode == 0
    assert is_whole(two_nodes)


def test_the_commands_take_a_node(two_nodes: Qemu) -> None:
    with attached(two_nodes):
        pid = two_nodes.pid
        assert "--guest-agreed" in refused(2, "inflate", pid, "--node", 1, "--size", "4M")
        taken = run(
            "inflate", pid, "--node", 1, "--size", "4M", "--granule", "thp", "--guest-agreed",
            "--json",
        )  # fmt: skip
        assert json.loads(taken.stdout)["done_bytes"] == 4 << 20
        span = ("--gpa", hex(SECOND.start), "--size", "2M")
        refused(2, "inflate", pid, "--node", 0, *span, "--guest-agreed")
        assert run("inflate", pid, "--node", 1, *span, "--guest-agreed").returncode == 0
        nodes = status_of(two_nodes)["nodes"]
        assert [node["ballooned_bytes"] for node in nodes] == [0, 6 << 20]
        assert "in the balloon" in run("status", pid).stdout
        refused(2, "inflate", pid, "--node", 7, "--guest-agreed")
        refused(2, "inflate", pid, "--size", "4M", "--guest-agreed")
        refused(2, "inflate", pid, "--gpa", "0x8000000", "--guest-agreed")
        assert run("deflate", pid, "--node", 1).returncode == 0
        assert status_of(two_nodes)["ballooned_bytes"] == 0
    assert is_whole(two_nodes)


def test_parts_of_several_nodes_are_taken_and_given_back_in_one_go(two_nodes: Qemu) -> None:
    def ballooned_now() -> list[int]:
        return [node["ballooned_bytes"] >> 20 for node in status_of(two_nodes)["nodes"]]

    pid, thp = two_nodes.pid, ("--granule", "thp")
    with attached(two_nodes):
        both = ("--node", "0=2M", "--node", "1=4M", *thp)
        assert "node 0, node 1" in refused(2, "inflate", pid, *both)
        looked = json.loads(run("inflate", pid, *both, "--dry-run", "--json").stdout)
        assert looked["would_do_bytes"] == 6 << 20
        assert ballooned_now() == [0, 0]
        taken = json.loads(run("inflate", pid, *both, "--guest-agreed", "--json").stdout)
        assert taken["done_bytes"] == taken["requested_bytes"] == 6 << 20
        assert ballooned_now() == [2, 4]
        # All or nothing: one of them has not so much.
        too_much = ("--node", "0=2M", "--node", "1=200M", *thp, "--guest-agreed")
        assert "node 1 has not" in refused(2, "inflate", pid, *too_much)
        assert ballooned_now() == [2, 4]
        given_back = run("deflate", pid, "--node", "1=2M", "--node", "0", *thp)
        assert given_back.returncode == 0, given_back.stderr
        assert ballooned_now() == [0, 2]
        agreed = "--guest-agreed"
        assert "twice" in refused(2, "inflate", pid, "--node", "1=2M", "--node", "1=2M", agreed)
        assert "its own" in refused(2, "inflate", pid, *both, "--size", "2M", agreed)
        span = ("--gpa", hex(SECOND.start), "--size", "2M")
        refused(2, "inflate", pid, *both, *span, agreed)
        refused(2, "inflate", pid, "--node", "1=2M", *span, agreed)
        refused(2, "inflate", pid, "--node", "x=2M", agreed)
        assert ballooned_now() == [0, 2]
    assert is_whole(two_nodes)


def test_of_which_nodes_the_driver_gave_memory_up_is_told(two_nodes: Qemu) -> None:
    with Session(SessionOptions(pid=two_nodes.pid, qmp_path=str(two_nodes.qmp_path))) as session:
        two_nodes.guest.balloon_inflate(FIRST)
        session.settle()
        wanted = 2 * NODE_BYTES - FIRST.size_bytes - SECOND.size_bytes
        assert session.ask_balloon(wanted).node_bytes == {0: 0, 1: 0}
        two_nodes.guest.balloon_inflate(SECOND)
        session.settle()
        progress = session.balloon_progress()
        assert progress.state is ProgressState.REACHED
        assert progress.node_bytes == {0: 0, 1: SECOND.size_bytes}
        assert "0 B of node 0, 8 MiB of node 1" in progress_line(progress)
        assert session.ask_balloon(2 * NODE_BYTES).node_bytes == {0: 0, 1: 0}
        two_nodes.guest.balloon_deflate(FIRST)
        session.settle()
        progress = session.balloon_progress()
        assert progress.node_bytes == {0: -FIRST.size_bytes, 1: 0}
        assert "4 MiB to node 0" in progress_line(progress)
    assert is_whole(two_nodes)
