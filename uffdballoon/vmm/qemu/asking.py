# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask the monitor what it knows of the guest's memory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from uffdballoon.errors import QmpError, UsageError
from uffdballoon.vmm.qemu.answers import parse_gpa2hva, parse_mtree, parse_ramblock
from uffdballoon.vmm.qemu.facts import MonitorFacts, SparseDevice, ram_among

if TYPE_CHECKING:
    from collections.abc import Iterator


class Answers(Protocol):
    """What of a monitor is needed here."""

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any: ...  # noqa: ANN401
    def hmp(self, line: str) -> str: ...


@contextlib.contextmanager
def understanding(what: str) -> Iterator[None]:
    """Turn what an answer of another shape leads to into QmpError: QEMU may be in bad hands."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UsageError) as e:
        raise QmpError(
            f"the monitor's answer to {what} is not understood",
            why=f"{type(e).__name__}: {e}"[:200],
            hint="is this QEMU older than 4.2, or not QEMU at all?",
        ) from e


def collect(monitor: Answers) -> MonitorFacts:
    """Ask everything that discovery needs; raise QmpError."""
    with understanding("what memory there is"):
        return _collect(monitor)


def _collect(monitor: Answers) -> MonitorFacts:
    sections = parse_mtree(monitor.hmp("info mtree -f"))
    memdevs = frozenset(str(m["id"]) for m in monitor.execute("query-memdev") if "id" in m)
    told = monitor.execute("query-memory-devices")
    devices = _sparse_devices(told)
    ram = ram_among(sections, memdevs, devices)
    hvas = {}
    for section in sections:
        if section.idstr in ram:
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
        devices=devices,
        nodes=_plugged_nodes(told),
        vcpu_tids=vcpu_tids(monitor),
        balloon_actual_bytes=_balloon_actual_bytes(monitor),
    )


def vcpu_tids(monitor: Answers) -> dict[int, int]:
    """Map the thread ids of the vCPUs to their numbers; raise QmpError."""
    with understanding("query-cpus-fast"):
        cpus = monitor.execute("query-cpus-fast")
        return {_tid(cpu["thread-id"]): int(cpu["cpu-index"]) for cpu in cpus}


def _tid(value: object) -> int:
    """Read a thread's id, which has to fit into a pid_t."""
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise ValueError(f"{value!r} is no thread")
    return value


def _sparse_devices(devices: Any) -> tuple[SparseDevice, ...]:  # noqa: ANN401 - QEMU's answer
    return tuple(
        SparseDevice(
            name=str(data.get("id", "without a name")),
            memdev=_id_of(data["memdev"]),
            gpa=int(data["memaddr"]),
            size_bytes=int(data["max-size"]),
            plugged_bytes=int(data["size"]),
            node=int(data["node"]),
        )
        for data in (device["data"] for device in devices if device["type"] == "virtio-mem")
    )


def sparse_bytes(monitor: Answers) -> int:
    """Return how much virtio-mem devices have plugged in; raise QmpError."""
    with understanding("query-memory-devices"):
        devices = _sparse_devices(monitor.execute("query-memory-devices"))
        return sum(device.plugged_bytes for device in devices)


def _plugged_nodes(devices: Any) -> dict[str, int]:  # noqa: ANN401 - QEMU's answer
    return {
        _id_of(device["data"]["memdev"]): int(device["data"].get("node", 0))
        for device in devices
        if "memdev" in device.get("data", {})
    }


def _id_of(path: object) -> str:
    return str(path).rpartition("/")[2]


def _balloon_actual_bytes(monitor: Answers) -> int | None:
    try:
        with understanding("query-balloon"):
            return int(monitor.execute("query-balloon")["actual"])
    except QmpError:
        return None  # no balloon device
