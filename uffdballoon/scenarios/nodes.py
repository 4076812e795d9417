# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with two NUMA nodes, on a memory backend each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.qemu_options import Memory
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.ram import Backing
from uffdballoon.model.sizes import format_size
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from uffdballoon.lab.qemu import Qemu
    from uffdballoon.scenarios.stage import Stage
    from uffdballoon.session import Session

_NODE_BYTES = 96 << 20
_TAKEN_BYTES = 16 << 20
_GIVEN_UP = GpaRange.of(64 << 20, 8 << 20)
_SECOND = GpaRange.of(_NODE_BYTES + (8 << 20), 4 << 20)
_TAKEN = GpaRange.of(2 * _NODE_BYTES - _TAKEN_BYTES, _TAKEN_BYTES)
_FLOOR_BYTES = _TAKEN_BYTES // 2
_SEED = 0x0DE


def _ballooned(session: Session) -> list[int]:
    return [node.ballooned_bytes for node in session.status().nodes]


def two_node(stage: Stage) -> None:
    """Take memory of one node and of the other, and see that each is counted where it belongs."""
    memory = Memory(size_bytes=2 * _NODE_BYTES, backing=Backing.MEMFD, share=True, nodes=2)
    qemu = stage.start(memory=memory)
    qemu.guest.fill(_SECOND, _SEED)
    with stage.attach(qemu, "observe") as session:
        nodes = session.status().nodes
        for node in nodes:
            where = ", ".join(f"{format_size(v)} on {k}" for k, v in node.host_nodes.items())
            stage.host(
                f"node {node.node}: {format_size(node.ram_bytes)}; on nodes of the host: "
                f"{where or 'not known'}"
            )
        stage.promise(
            "the guest has two nodes, and both are seen",
            holds=[node.node for node in nodes] == [0, 1],
        )
        qemu.guest.balloon_inflate(_GIVEN_UP)
        stage.settle(session)
        stage.guest(f"gave up {format_size(_GIVEN_UP.size_bytes)} of node 0")
        stage.promise(
            "it is counted on node 0 alone", holds=_ballooned(session) == [_GIVEN_UP.size_bytes, 0]
        )
        done = session.inflate_node(1, Granule.THP, size_bytes=_TAKEN_BYTES, guest_agreed=True)
        stage.host(f"took {format_size(done.done_bytes)} of node 1, in whole blocks from its end")
        reclaimed = [node.reclaimed_bytes for node in session.status().nodes]
        stage.promise(
            "it is counted on node 1, and both are free on the host",
            holds=_ballooned(session) == reclaimed == [_GIVEN_UP.size_bytes, _TAKEN_BYTES],
        )
        last = GpaRange.of(2 * _NODE_BYTES - 3 * PAGE_BYTES, 3 * PAGE_BYTES)
        qemu.guest.touch(last, Access.WRITE)
        stage.settle(session)
        stage.promise(
            "a touch there is trapped, and leaves node 0 as it is",
            holds=session.status().touches.violations == 3  # noqa: PLR2004
            and _ballooned(session) == [_GIVEN_UP.size_bytes, _TAKEN_BYTES - last.size_bytes],
        )
        session.deflate_node(1, Granule.SMALL, None)
        stage.promise(
            "all that is left of node 1 is given back, and nothing of node 0",
            holds=_ballooned(session) == [_GIVEN_UP.size_bytes, 0],
        )
    _hold_to_a_floor(stage, qemu)
    check = qemu.guest.verify(_SECOND, _SEED)
    stage.promise("what the guest owns of node 1 kept its contents", holds=check.bad_lines == 0)
    stage.check_owned(qemu.guest)


def _hold_to_a_floor(stage: Stage, qemu: Qemu) -> None:
    terms = Terms(kind=ContractKind.CAP, node_floors=((1, _FLOOR_BYTES),))
    with stage.attach(qemu, "zero-read,freeze", terms) as session:
        stage.inflate(session, _GIVEN_UP)
        stage.inflate(session, _TAKEN)
        qemu.guest.touch(_GIVEN_UP, Access.WRITE)
        pending = qemu.guest.start_touch(_TAKEN, Access.WRITE)
        stage.guest("writes to all that is in the balloon of node 0, then of node 1")
        stage.wait_for(session, "a frozen vCPU", lambda: bool(session.held()))
        stage.promise(
            f"node 0 is given back, and of node 1 the floor of {format_size(_FLOOR_BYTES)} holds",
            holds=_ballooned(session) == [0, _FLOOR_BYTES],
        )
        session.deflate_node(1, Granule.SMALL, None)
        stage.finish(session, pending)
        pending.wait()
        stage.guest("went on, as the host gave the rest of node 1 back")
