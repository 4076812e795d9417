# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault latency as a guest sees it: a micro-guest of a real QEMU, by its own clock."""

from __future__ import annotations

import array
import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from uffdballoon.balloon.zap_private import zap_private
from uffdballoon.bench.contenders import Engine, Nobody, Reference
from uffdballoon.bench.distribution import Distribution
from uffdballoon.bench.machine import tsc_hz
from uffdballoon.bench.reference import HandlerKind
from uffdballoon.host.process import read_memory
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, Gpa, GpaRange
from uffdballoon.model.touch import Access
from uffdballoon.session import look_at
from uffdballoon.target.injector import Injector
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.threads import find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from uffdballoon.bench.contenders import Contender
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.ram import Layout, RamBlock

_ARENA = GpaRange.of(64 << 20, 8 << 20)
_RECORDS = Gpa(16 << 20)
_MEMORY_BYTES = 192 << 20


def measure_guest(
    accel: Accel, *, samples: int, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield a series for each contender, on the memory of a QEMU with one vCPU."""
    options = QemuOptions(accel=accel, memory=Memory(size_bytes=_MEMORY_BYTES))
    with Qemu(options) as qemu, Target.open(qemu.pid) as target, contextlib.ExitStack() as stack:
        injector = stack.enter_context(Injector(target, find_rcu_thread(target).thread))
        layout, facts, _ = look_at(target, str(qemu.qmp_path))
        assert facts is not None
        (vcpu,) = facts.vcpu_tids
        cpu = min(os.sched_getaffinity(0))
        os.sched_setaffinity(vcpu, {cpu})  # as a pinned guest's, and for a fair comparison
        span, block = layout.to_hva(_ARENA)
        stage = _Stage(qemu, injector, layout)
        for access in (Access.WRITE, Access.READ):
            modes = ("observe", "cap", "ordinary") if access is Access.WRITE else ("zero-read",)
            contenders = [stack.enter_context(c) for c in _contenders(qemu.pid, block, modes, cpu)]
            progress(f"QEMU under {accel.value}, {access.value}")
            measured = _interleave(contenders, stage, span, access, samples)
            for contender, distribution in zip(contenders, measured, strict=True):
                yield {
                    "name": contender.name,
                    "backing": f"qemu-{accel.value}-4k",
                    "access": access.value,
                    "threads": 1,
                    **distribution.summary(),
                }


def _contenders(pid: int, block: RamBlock, modes: Sequence[str], cpu: int) -> Iterator[Contender]:
    yield Nobody()
    yield Reference(pid, HandlerKind.MANPAGE, block, cpu=-1)
    yield Reference(pid, HandlerKind.BEST, block, cpu=cpu)
    for mode in modes:
        yield Engine(pid, mode, block)


class _Stage(NamedTuple):
    qemu: Qemu
    injector: Injector
    layout: Layout


def _interleave(
    contenders: Sequence[Contender],
    stage: _Stage,
    span: HvaRange,
    access: Access,
    samples: int,
) -> list[Distribution]:
    distributions = [Distribution() for _ in contenders]
    touches = _ARENA.size_bytes // PAGE_BYTES
    for number in range(-(-samples // touches) + 1):
        for turn in range(len(contenders)):
            index = (number + turn) % len(contenders)
            contender = contenders[index]
            contender.trap(span)
            try:
                zap_private(stage.injector, [span])
                stage.qemu.guest.touch(_ARENA, access, record_gpa=_RECORDS)
            finally:
                contender.let_go(span)
            if number:
                recorded = _read_records(stage.qemu.pid, stage.layout, touches)
                distributions[index].add(recorded, sum(recorded))
    return distributions


def _read_records(pid: int, layout: Layout, touches: int) -> array.array[int]:
    """Read the cycles that the guest recorded, and return ns."""
    hva, _ = layout.to_hva(GpaRange.of(_RECORDS, 4 * touches))
    cycles = array.array("I", read_memory(pid, hva))
    scale = 1e9 / tsc_hz()
    return array.array("I", (min(round(value * scale), 0xFFFFFFFF) for value in cycles))
