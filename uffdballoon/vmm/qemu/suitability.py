# SPDX-License-Identifier: GPL-2.0-or-later
"""What of enforcing will not hold for this QEMU: said once, for `doctor`, `inspect` and `attach`.

A device that has the guest's memory pinned goes on with pages that were dropped, memory that is
encrypted is not what is mapped, and what other processes map they fill without a trap.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdballoon.errors import (
    PermissionDeniedError,
    QmpError,
    TargetGoneError,
    UffdballoonError,
    UnsupportedError,
    UsageError,
)
from uffdballoon.host.procfs import locked_bytes_of, read_mappings
from uffdballoon.host.uffd import Feature, query_features
from uffdballoon.target.process import is_vmm

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from uffdballoon.model.ram import RamBlock
    from uffdballoon.target.process import Target
    from uffdballoon.vmm.qemu.asking import Answers

ALLOWABLE = ("vfio", "vdpa", "encrypted", "shared-elsewhere")
SHARING = ("vfio", "vdpa", "shared-elsewhere")
"""By these others write to the guest's memory, past what the VMM has mapped."""
"""The names of findings that refuse an attach, for ``attach --allow``."""

# QEMU, hw/vfio/: vfio-pci, vfio-pci-nohotplug, vfio-ap, vfio-user-pci, ...
_VFIO_DEVICE = re.compile(r"x?-?vfio-.+|vfio-user")
_VDPA = re.compile(r"(?:x-)?vhost-vdpa(?:-.+)?")
_OUTSIDE = re.compile(r"vhost-user(?:-.+)?|ivshmem-(?:plain|doorbell)|x-pci-proxy-dev")
# QEMU, target/i386/sev.c and kvm/tdx.c, hw/s390x/pv.c, hw/ppc/pef.c, target/arm/kvm-rme.c
_ENCRYPTED_OBJECT = re.compile(r"(?:sev|sev-snp|tdx|s390-pv|pef|rme)-guest")
_ENCRYPTED_MACHINE = ("confidential-guest-support", "memory-encryption")
_ENCRYPTED_KVM = re.compile(r"(?:tdx|sev|snp|protected|cvm|pkvm).*", re.IGNORECASE)
# drivers/vfio: groups, cdevs and the container; drivers/iommu/iommufd
_VFIO_FD = re.compile(r"/dev/vfio/.+|/dev/iommu|anon_inode:\[?(?:vfio|iommufd).*")
_VDPA_FD = re.compile(r"/dev/vhost-vdpa-.+")
# virt/kvm/guest_memfd.c; drivers/crypto/ccp/sev-dev.c
_ENCRYPTED_FD = re.compile(r".*(?:kvm-gmem|guest_memfd).*|/dev/sev")
# QEMU, softmmu/qdev-monitor.c: qdev_print()
_QTREE_DEVICE = re.compile(r'^\s*dev: (?P<driver>[^,\s]+), id "(?P<id>[^"]*)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    """What will not hold; ``refuses`` when an attach needs the operator's word for it."""

    name: str
    sentence: str
    refuses: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is to be judged: devices, fds and the like, by whoever told of them.

    ``drivers`` maps what the command line or the monitor calls a device (or netdev) to its id.
    ``encrypted`` is how that is known; ``mappers`` are other processes that share the RAM, and
    ``owners`` those to which its contents belong as well: another VMM, or who has a private copy.
    """

    drivers: Mapping[str, str] = field(default_factory=dict)
    fds: Collection[str] = ()
    encrypted: str = ""
    mappers: Sequence[int] = ()
    owners: Sequence[int] = ()
    locked_bytes: int = 0
    sees_fills: bool = True


def judge(evidence: Evidence) -> list[Finding]:
    """Return what will not hold, the gravest first; ask nobody."""
    findings = []
    for name, kind, driver, fd in (
        ("vfio", "VFIO", _VFIO_DEVICE, _VFIO_FD),
        ("vdpa", "vDPA", _VDPA, _VDPA_FD),
    ):
        pins = _named(evidence, driver, fd)
        if pins:
            findings.append(
                Finding(
                    name,
                    f"a {kind} device has the guest's memory pinned ({pins}): what is dropped is "
                    "not freed, and the device goes on with the old pages, so that data is lost",
                    refuses=True,
                )
            )
    encrypted = evidence.encrypted or _named(evidence, None, _ENCRYPTED_FD)
    if encrypted:
        findings.append(
            Finding(
                "encrypted",
                f"the guest's memory is encrypted or private ({encrypted}): its pages are not "
                "those that QEMU maps, and zeros and traps do not work on them",
                refuses=True,
            )
        )
    findings += _elsewhere(evidence)
    if evidence.locked_bytes:
        findings.append(
            Finding(
                "locked",
                f"{evidence.locked_bytes >> 20} MiB of QEMU's memory are locked (mem-lock): of "
                "private memory `inflate` frees what it takes, of huge pages whole ones alone, but "
                "the kernel refuses QEMU what the guest's own balloon gives up, which stays there",
                refuses=False,
            )
        )
    return findings


def _elsewhere(evidence: Evidence) -> list[Finding]:
    told = []
    outside = _outside(evidence)
    if outside:
        told.append(
            f"other processes use the guest's memory through mappings of their own ({outside}"
            "): what they read or write there is not trapped"
            + (
                ", keeps memory, and is judged when the guest touches it"
                if evidence.sees_fills
                else ", nor is it when the guest touches it, as this kernel has no minor faults"
            )
        )
    if evidence.owners:
        owners = ", ".join(f"process {pid}" for pid in evidence.owners)
        told.insert(
            0,
            f"the guest's memory belongs to others as well ({owners}): another guest has it, or "
            "a private copy of it, and loses what is dropped",
        )
    refuses = bool(evidence.owners) or not evidence.sees_fills
    return [Finding("shared-elsewhere", "; ".join(told), refuses=refuses)] if told else []


def gather(
    target: Target, blocks: Sequence[RamBlock] = (), monitor: Answers | None = None
) -> Evidence:
    """Look at a target, and ask its monitor; change nothing.

    What may not be looked at counts as not there. Raises TargetGoneError.
    """
    drivers = dict(devices_of(target.cmdline))
    encrypted = encryption_of(target.cmdline)
    if monitor is not None:
        drivers |= plugged_devices(monitor)
        encrypted = encrypted or _told_encryption(monitor)
    fds: frozenset[str] = frozenset()
    with contextlib.suppress(PermissionDeniedError):
        fds = frozenset(target.fds().values())
    try:
        sees_fills = not (Feature.MINOR_SHMEM | Feature.MINOR_HUGETLBFS) & ~query_features()
    except (OSError, UffdballoonError):
        sees_fills = True
    mappers = other_mappers(target.pid, blocks)
    return Evidence(
        drivers=drivers,
        fds=fds,
        encrypted=encrypted,
        mappers=tuple(pid for pid, owns in mappers.items() if not owns),
        owners=tuple(pid for pid, owns in mappers.items() if owns),
        locked_bytes=_locked_ram(target.pid, blocks),
        sees_fills=sees_fills,
    )


def _locked_ram(pid: int, blocks: Sequence[RamBlock]) -> int:
    """Return how much is locked where that is all of RAM; a library's secrets are not."""
    locked = locked_bytes_of(pid)
    return locked if locked >= max(sum(b.size_bytes for b in blocks), 1 << 20) else 0


def refuse_unsuitable(findings: Sequence[Finding], allowed: Collection[str], pid: int) -> None:
    """Raise UnsupportedError for what refuses and is not ``allowed``."""
    refusing = [f for f in findings if f.refuses and f.name not in allowed]
    if refusing:
        names = ",".join(f.name for f in refusing)
        raise UnsupportedError(
            f"the guest of process {pid} cannot be enforced",
            why="; ".join(f.sentence for f in refusing),
            hint=f"take such devices from the guest, or attach all the same with --allow {names}",
            pid=pid,
        )


def parse_allowed(text: str) -> frozenset[str]:
    """Read the words of --allow; raise UsageError for one that is not known."""
    words = frozenset(word.strip() for word in text.split(","))
    if unknown := words - set(ALLOWABLE):
        raise UsageError(
            f"--allow {text} is not known",
            why=f"{', '.join(sorted(unknown)) or 'nothing'} is none of its words",
            hint=f"its words are {', '.join(ALLOWABLE)}",
        )
    return words


def devices_of(cmdline: Sequence[str]) -> dict[str, str]:
    """Map the drivers of -device, and the kinds of -netdev, to their ids."""
    found = {}
    for name, properties in _options(cmdline):
        if name == "device":
            found[properties.get("driver", "")] = properties.get("id", "")
        elif name in ("netdev", "net", "nic"):
            found[properties.get("type", "")] = properties.get("id", "")
    return found


def encryption_of(cmdline: Sequence[str]) -> str:
    """Say how the command line encrypts the guest's memory; empty when it does not."""
    for name, properties in _options(cmdline):
        if name == "object" and _ENCRYPTED_OBJECT.fullmatch(properties.get("qom-type", "")):
            return properties["qom-type"]
        if name in ("machine", "M", "accel"):
            for key in _ENCRYPTED_MACHINE:
                if properties.get(key):
                    return f"{key}={properties[key]}"
            if _ENCRYPTED_KVM.fullmatch(properties.get("kvm-type", "")):
                return f"kvm-type={properties['kvm-type']}"
    return ""


_HEADS = {
    "device": "driver",
    "object": "qom-type",
    "machine": "type",
    "M": "type",
    "accel": "accel",
    "netdev": "type",
    "net": "type",
    "nic": "type",
}


def _options(cmdline: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the options that have properties; each given as often as it is."""
    given = iter(cmdline)
    for argument in given:
        # QEMU, softmmu/vl.c: lookup_opt() takes one dash or two.
        name = argument.removeprefix("-").removeprefix("-") if argument[:1] == "-" else ""
        if name in _HEADS:
            value = next(given, "")
            yield name, _properties(value, _HEADS[name])


def _properties(value: str, head: str) -> dict[str, str]:
    """Read ``head,key=value,...`` or JSON; a comma in a value is doubled (util/keyval.c)."""
    if value.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            read: Any = json.loads(value)
            return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in read.items()}
        return {}
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    pairs = [part.partition("=") for part in parts]
    properties = {key: text for key, equals, text in pairs if equals}
    if pairs and not pairs[0][1]:
        properties.setdefault(head, pairs[0][0])
    return properties


def plugged_devices(monitor: Answers) -> dict[str, str]:
    """Map the drivers of all devices that there are now, hot-plugged ones too, to their ids."""
    try:
        tree = monitor.hmp("info qtree")
    except QmpError:
        return {}
    return {match["driver"]: match["id"] for match in _QTREE_DEVICE.finditer(tree)}


def _told_encryption(monitor: Answers) -> str:
    # Where QEMU is built without it, or has none, it answers with an error.
    with contextlib.suppress(QmpError, AttributeError):
        if monitor.execute("query-sev").get("enabled"):
            return "query-sev says so"
    with contextlib.suppress(QmpError):
        support = monitor.execute(
            "qom-get", {"path": "/machine", "property": "confidential-guest-support"}
        )
        if support:
            return f"confidential-guest-support={support}"
    return ""


def other_mappers(pid: int, blocks: Sequence[RamBlock]) -> dict[int, bool]:
    """Find the other processes that map the files behind shared RAM blocks.

    The value says whether the contents are theirs, too: a VMM's, or those of a private mapping,
    which shows the file wherever nothing was written. A device's process only borrows them.
    """
    shared = [block for block in blocks if block.shared]
    if not shared:
        return {}
    files = {
        (mapping.device, mapping.inode)
        for mapping in read_mappings(pid)
        if mapping.inode
        and any(mapping.span.start <= block.hva < mapping.span.end for block in shared)
    }
    inodes = [f" {inode} ".encode() for _, inode in files]
    found = {}
    for entry in sorted(Path("/proc").iterdir()):
        if not entry.name.isdecimal() or int(entry.name) == pid:
            continue
        other = int(entry.name)
        with contextlib.suppress(OSError, TargetGoneError, PermissionDeniedError):
            text = (entry / "maps").read_bytes()
            if not any(inode in text for inode in inodes):
                continue
            maps = [m for m in read_mappings(other) if (m.device, m.inode) in files]
            if maps:
                found[other] = not all(m.shared for m in maps) or _is_vmm(other)
    return found


def _is_vmm(pid: int) -> bool:
    proc = Path(f"/proc/{pid}")
    arguments = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return is_vmm(str((proc / "exe").readlink()), tuple(arguments))


def _named(evidence: Evidence, driver: re.Pattern[str] | None, fd: re.Pattern[str]) -> str:
    named = []
    if driver is not None:
        named += [
            f"{kind} {known}".strip()
            for kind, known in sorted(evidence.drivers.items())
            if driver.fullmatch(kind)
        ]
    return ", ".join(named or sorted({link for link in evidence.fds if fd.fullmatch(link)}))


def _outside(evidence: Evidence) -> str:
    named = [
        f"{kind} {known}".strip()
        for kind, known in sorted(evidence.drivers.items())
        if _OUTSIDE.fullmatch(kind)
    ]
    return ", ".join(named + [f"process {pid}" for pid in evidence.mappers])
