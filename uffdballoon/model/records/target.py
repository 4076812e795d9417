# SPDX-License-Identifier: GPL-2.0-or-later
"""What there is to know of a QEMU, and of all of this host's."""

import enum
from dataclasses import dataclass
from typing import Annotated

from msgspec import UNSET, UnsetType

from uffdballoon.model.ram import Backing
from uffdballoon.model.records.doc import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFacts:
    """A stretch of guest memory."""

    gpa: Annotated[int, doc("guest-physical address of its first byte")]
    size: Annotated[int, doc("bytes")]
    hva: Annotated[int, doc("where QEMU has it mapped")]
    idstr: Annotated[str, doc("RAM block of QEMU's that it is a part of")]
    memdev: Annotated[str | None, doc("memory backend of that block; null: none, or not known")]
    page_bytes: Annotated[int, doc("size of its pages, bytes")]
    backing: Annotated[Backing, doc("what its memory is")]
    shared: Annotated[bool, doc("whether it is mapped shared")]
    numa_node: Annotated[int | None, doc("NUMA node of the guest; null: not known")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadFacts:
    """A thread of the target."""

    tid: Annotated[int, doc("its id")]
    name: Annotated[str, doc("its name")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfinementFacts:
    """What the target may not do, and where it lives."""

    uid: Annotated[int, doc("user that it runs as")]
    capabilities: Annotated[int, doc("its effective capabilities, a bit each")]
    no_new_privs: Annotated[bool, doc("whether it can gain none")]
    seccomp: Annotated[bool, doc("whether it has seccomp filters")]
    tracer_pid: Annotated[int, doc("who traces it; 0: nobody")]
    shadow_stack: Annotated[bool, doc("whether a thread has one")]
    foreign_namespaces: Annotated[tuple[str, ...], doc("kinds of namespaces that are not ours")]
    security_label: Annotated[str, doc("what a security module calls it; empty without one")] = ""
    capability_names: Annotated[tuple[str, ...], doc("its capabilities, as CAP_...")]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingFacts:
    """What will not hold."""

    name: Annotated[str, doc("a word for it, as `attach --allow` takes it")]
    sentence: Annotated[str, doc("what it is, for a person")]
    refuses: Annotated[bool, doc("whether an attach needs --allow")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """What a VM's memory is made of, and who it is."""

    pid: Annotated[int, doc("its process")]
    vm: Annotated[str, doc("its name, as -name has it; empty without one")] = ""
    exe: Annotated[str, doc("path of its program; empty: not to be seen")]
    source: Annotated[str, doc("what its memory was found by")]
    unknown: Annotated[tuple[str, ...], doc("what could not be found out, for a person")]
    refusals: Annotated[tuple[str, ...], doc("why it cannot be attached to; empty: it can")]
    locked_bytes: Annotated[int, doc("bytes that it has locked")]
    ram_bytes: Annotated[int, doc("bytes of guest memory that can be in the balloon")]
    nominal_ram_bytes: Annotated[
        int | UnsetType,
        doc("the guest's size, its -m and DIMMs: with what firmware shows its ROMs over"),
    ] = UNSET
    ram: Annotated[tuple[RamFacts, ...], doc("stretches of guest memory, by their gpa")]
    balloon_actual_bytes: Annotated[
        int | None, doc("bytes that its balloon leaves the guest; null: nobody can say")
    ]
    vcpus: Annotated[dict[int, int], doc("number of the vCPU by thread id")]
    threads: Annotated[tuple[ThreadFacts, ...], doc("its threads")]
    confinement: Annotated[ConfinementFacts, doc("what it may not do")]
    unsuitable: Annotated[tuple[FindingFacts, ...], doc("what will not hold")]


class MonitorState(enum.Enum):
    """Whether a monitor has a client; it serves one at a time."""

    FREE = "free"
    HELD = "held"
    UNKNOWN = "unknown"


class MonitorOwner(enum.Enum):
    """Whose a monitor is, by where its socket lies."""

    LIBVIRT = "libvirt"
    PROXMOX = "proxmox"
    GANETI = "ganeti"


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSocket:
    """A QMP socket that a QEMU listens on."""

    path: Annotated[str, doc("where it is, as QEMU was told")]
    state: Annotated[MonitorState, doc("whether a client is connected to it")]
    owner: Annotated[MonitorOwner | None, doc("whose it is, by its path; null: not known")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTarget:
    """A QEMU of this host."""

    pid: Annotated[int, doc("its process")]
    vm: Annotated[str, doc("its name, as -name has it; empty without one")] = ""
    vm_id: Annotated[str, doc("its id on Proxmox, as -id has it; empty without one")] = ""
    exe: Annotated[str, doc("path of its program; empty: not to be seen")]
    machine: Annotated[str, doc("machine type; empty where its command line does not say")]
    ram_bytes: Annotated[int | None, doc("bytes of its -m; null where that does not say")]
    attached: Annotated[bool, doc("whether a manager of it is alive")]
    monitors: Annotated[tuple[MonitorSocket, ...], doc("its QMP sockets")] = ()
