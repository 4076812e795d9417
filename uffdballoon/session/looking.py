# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be said of a target without attaching to it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.model.origin import Origin
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.discovery import discover
from uffdballoon.vmm.qemu.machine import Machine
from uffdballoon.vmm.qemu.naming import names_of
from uffdballoon.vmm.qemu.suitability import gather, judge

if TYPE_CHECKING:
    from uffdballoon.model.ram import Layout
    from uffdballoon.vmm.qemu.facts import MonitorFacts
    from uffdballoon.vmm.qemu.suitability import Finding


class Looked(NamedTuple):
    """What can be said of a target without attaching to it."""

    layout: Layout
    monitor: MonitorFacts | None
    unsuitable: list[Finding]


def refuse_at_first_sight(pid: int) -> Origin:
    """Raise what an attach would raise before it does anything; return what it would attach to.

    There is no such process, it is no VMM, or it must not be looked at.
    """
    with Target.open(pid) as target:
        target.refuse_if_busy()
        return Origin(pid, names_of(target.cmdline).name)


def look_at(target: Target, qmp_path: str | None) -> Looked:
    """Find a target's RAM, with its monitor where a path is given; change nothing."""
    with contextlib.closing(Machine.connect(qmp_path, pid=target.pid, needed=True)) as machine:
        facts = machine.facts()
        layout = discover(target.pid, target.cmdline, facts)
        unsuitable = judge(gather(target, layout.blocks, machine.monitor))
    return Looked(layout, facts, unsuitable)
