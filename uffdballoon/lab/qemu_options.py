# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU of the lab is started with."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

from uffdballoon.lab.confinement import NOT_CONFINED, Confinement
from uffdballoon.model.ram import Backing

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Accel(enum.Enum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The guest's RAM.

    Without ``backing`` it is plain ``-m``; with it, a memory-backend object of that kind for
    each NUMA node. ``mem_path`` is the directory of a TMPFS or HUGETLBFS backing; without it
    TMPFS is /dev/shm and HUGETLBFS an anonymous file of huge pages. SHMEM is memory-backend-ram,
    shared. ``max_bytes`` and ``slots``
    leave room for DIMMs. Without ``reserve`` a guest may be given more memory than the host has.
    """

    size_bytes: int = 128 << 20
    backing: Backing | None = None
    share: bool = False
    prealloc: bool = False
    reserve: bool = True
    nodes: int = 1
    mem_path: str | None = None
    slots: int = 0
    max_bytes: int = 0

    def arguments(self) -> list[str]:
        room = f",slots={self.slots},maxmem={self.max_bytes}B" if self.slots else ""
        arguments = ["-m", f"size={self.size_bytes}B{room}"]
        if self.backing is None and self.nodes == 1:
            return arguments
        for node in range(self.nodes):
            arguments += ["-object", self.backend(f"ram{node}", self.size_bytes // self.nodes)]
        if self.nodes == 1:
            return [*arguments, "-machine", "memory-backend=ram0"]
        for node in range(self.nodes):
            arguments += ["-numa", f"node,nodeid={node},memdev=ram{node}"]
        return arguments

    def backend(self, name: str, size_bytes: int) -> str:
        """Describe one memory-backend object, for -object."""
        share, prealloc = _switch(on=self.share), _switch(on=self.prealloc)
        reserve = "" if self.reserve else ",reserve=off"  # QEMU 6.1
        what = f"{self._kind()},id={name},size={size_bytes}B"
        return f"{what},share={share},prealloc={prealloc}{reserve}"

    def _kind(self) -> str:
        match self.backing:
            case Backing.MEMFD:
                return "memory-backend-memfd"
            case Backing.TMPFS:
                return f"memory-backend-file,mem-path={self.mem_path or '/dev/shm'}"  # noqa: S108
            case Backing.HUGETLBFS if self.mem_path:
                return f"memory-backend-file,mem-path={self.mem_path}"
            case Backing.HUGETLBFS:
                return "memory-backend-memfd,hugetlb=on,hugetlbsize=2M"
            case _:
                return "memory-backend-ram"


@dataclass(frozen=True, kw_only=True)
class QemuOptions:
    """What to start.

    ``run_as`` is the uid (and gid) of an unprivileged QEMU: it is then started in its seccomp
    sandbox too, as libvirt does; ``sandbox`` is that alone, and ``confinement`` what else QEMU is
    locked into. ``deflate_on_oom`` and ``free_page_reporting`` are features of
    the balloon device that a Linux guest makes use of. ``name_threads`` has QEMU name its threads.
    ``tcg_threads``, "single" or "multi", is whether TCG's processors have a thread each; QEMU
    decides when it is None. ``seabios`` has a micro-guest boot by the firmware of other guests
    under KVM, too: for those who reset it.
    """

    accel: Accel = Accel.TCG
    memory: Memory = field(default_factory=Memory)
    processors: int = 1
    balloon: bool = True
    deflate_on_oom: bool = False
    free_page_reporting: bool = False
    name_threads: bool = False
    tcg_threads: Literal["single", "multi"] | None = None
    run_as: int | None = None
    sandbox: bool = False
    confinement: Confinement = NOT_CONFINED
    seabios: bool = False
    binary: str = "qemu-system-x86_64"
    extra: tuple[str, ...] = ()

    def arguments(self, *, legacy_balloon: bool) -> list[str]:
        """Build the command line but for the sockets and the kernel.

        ``legacy_balloon`` is for a guest that only drives the device of before virtio 1.0.
        """
        arguments = [self.binary, "-nodefaults", "-no-user-config", "-display", "none"]
        arguments += [*self._machine(), *self.memory.arguments()]
        arguments += ["-smp", str(self.processors)]
        if self.name_threads:
            arguments += ["-name", "guest=lab,debug-threads=on"]
        if self.balloon:
            arguments += ["-device", self._balloon_device(legacy=legacy_balloon)]
        if self.run_as is not None or self.sandbox:
            arguments += ["-sandbox", _SANDBOX]
        return [*arguments, *self.extra]

    def _machine(self) -> list[str]:
        if self.tcg_threads is None or self.accel is not Accel.TCG:
            return ["-machine", f"pc,accel={self.accel.value}"]
        return ["-machine", "pc", "-accel", f"tcg,thread={self.tcg_threads}"]

    def _balloon_device(self, *, legacy: bool) -> str:
        device = "virtio-balloon-pci,id=balloon0"
        if legacy:
            device += ",disable-modern=on"
        if self.deflate_on_oom:
            device += ",deflate-on-oom=on"
        if self.free_page_reporting:
            device += ",free-page-reporting=on"
        return device


def _switch(*, on: bool) -> str:
    return "on" if on else "off"
