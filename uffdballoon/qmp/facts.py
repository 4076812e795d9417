# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask the monitor what it knows of the guest's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.errors import QmpError
from uffdballoon.memory.facts import MonitorFacts
from uffdballoon.memory.monitor_text import parse_gpa2hva, parse_mtree, parse_ramblock

if TYPE_CHECKING:
    from uffdballoon.qmp.monitor import Monitor


def collect(monitor: Monitor) -> MonitorFacts:
    """Ask everything that discovery needs; raise QmpError."""
    sections = parse_mtree(monitor.hmp("info mtree -f"))
    memdevs = frozenset(str(m["id"]) for m in monitor.execute("query-memdev") if "id" in m)
    hvas = {}
    for section in sections:
        if section.idstr in memdevs:
            hva = parse_gpa2hva(monitor.hmp(f"gpa2hva {section.gpa:#x}"))
            if hva is not None:
                hvas[section.gpa] = hva
    version = monitor.execute("query-version")["qemu"]
    return MonitorFacts(
        version=f"{version['major']}.{version['minor']}.{version['micro']}",
        sections=sections,
        blocks=parse_ramblock(monitor.hmp("info ramblock")),
        hvas=hvas,
        memdevs=memdevs,
        nodes=_plugged_nodes(monitor),
        vcpu_tids=vcpu_tids(monitor),
        balloon_actual_bytes=_balloon_actual_bytes(monitor),
    )


def vcpu_tids(monitor: Monitor) -> dict[int, int]:
    """Map the thread ids of the vCPUs to their numbers; raise QmpError."""
    cpus = monitor.execute("query-cpus-fast")
    return {int(cpu["thread-id"]): int(cpu["cpu-index"]) for cpu in cpus}


def _plugged_nodes(monitor: Monitor) -> dict[str, int]:
    devices = monitor.execute("query-memory-devices")
    return {
        str(device["data"]["memdev"]).rpartition("/")[2]: int(device["data"].get("node", 0))
        for device in devices
        if "memdev" in device.get("data", {})
    }


def _balloon_actual_bytes(monitor: Monitor) -> int | None:
    try:
        return int(monitor.execute("query-balloon")["actual"])
    except QmpError:
        return None  # no balloon device
