# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's monitor knows of the guest's memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_OBJECTS = "/objects/"
# What the RAM of -m alone is called, for which QEMU before 5.0 lists no memory backend.
_MACHINE_RAM = frozenset({"pc.ram", "microvm.ram"})


@dataclass(frozen=True, slots=True)
class RamSection:
    """A stretch of guest-physical memory, as `info mtree -f` lists it."""

    gpa: int
    size_bytes: int
    idstr: str
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class RamBlockFact:
    """A line of `info ramblock`."""

    idstr: str
    page_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SparseDevice:
    """A virtio-mem device, whose memory is plugged in block by block; sizes in bytes."""

    name: str
    memdev: str
    gpa: int
    size_bytes: int
    plugged_bytes: int
    node: int

    def __str__(self) -> str:
        return (
            f"what of {format_size(self.size_bytes)} of virtio-mem device {self.name} (backend "
            f"{self.memdev}, gpa {self.gpa:#x}, node {self.node}) the guest has plugged: "
            f"{format_size(self.plugged_bytes)}, not enforced"
        )


@dataclass(frozen=True)
class MonitorFacts:
    """Answers of the monitor, parsed.

    ``hvas`` maps the gpa of each section's start to its hva; ``memdevs`` are the
    ids of memory backends; ``devices`` have memory that is not in ``ram``; ``nodes``
    maps backends of hot-plugged memory to their NUMA nodes; ``vcpu_tids`` maps thread
    ids to vCPU numbers.
    """

    version: str
    sections: tuple[RamSection, ...]
    blocks: tuple[RamBlockFact, ...]
    hvas: Mapping[int, int]
    memdevs: frozenset[str]
    devices: tuple[SparseDevice, ...] = ()
    nodes: Mapping[str, int] = field(default_factory=dict)
    vcpu_tids: Mapping[int, int] = field(default_factory=dict)
    balloon_actual_bytes: int | None = None

    @property
    def ram(self) -> dict[str, str]:
        """Map the names that memory regions of guest RAM have to what backs them."""
        return ram_among(self.sections, self.memdevs, self.devices)


def ram_among(
    sections: Iterable[RamSection], memdevs: frozenset[str], devices: Iterable[SparseDevice]
) -> dict[str, str]:
    """Map the names of memory regions that are guest RAM to what backs them.

    A memory backend stands behind each, which is the case of ``-m`` alone as well since 5.0
    (QEMU, hw/core/machine.c: create_default_memdev()). Before 4.0, and with machine types up
    to 3.1, the region of a file or memfd is named after the backend's path
    (backends/hostmem.c: host_memory_backend_get_name()).
    """
    sparse = {device.memdev for device in devices}
    names = {section.idstr for section in sections}
    backends = {name: name.removeprefix(_OBJECTS) for name in names}
    ram = {name: memdev for name, memdev in backends.items() if memdev in memdevs - sparse}
    return ram | {name: name for name in names & _MACHINE_RAM}
