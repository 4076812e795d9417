# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host can do: each thing tried, never inferred from a version."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import UffdballoonError
from uffdballoon.host.jobs import INSPECT, JOBS, Job
from uffdballoon.host.libvirt_binding import INSTALL, lacking_modules
from uffdballoon.host.privileges import NEEDS, Capability, held_capabilities
from uffdballoon.host.process import duplicate_fd, resident
from uffdballoon.host.thp import read_thp_settings
from uffdballoon.host.trace import Trace
from uffdballoon.host.uffd import DEVICE, Feature, Userfaultfd, query_features
from uffdballoon.model.addresses import HvaRange

if TYPE_CHECKING:
    from collections.abc import Callable

_KVM_CREATE_VM = 0xAE01
_NO_ATTACH = 3  # kernel.yama.ptrace_scope, Documentation/admin-guide/LSM/Yama.rst
_PTRACE_SCOPE = "/proc/sys/kernel/yama/ptrace_scope"
ATTACH_TO_OWN = "own user's QEMU: attach, and inflate private memory"
_RUN_AS_ROOT = "run as root, or with CAP_SYS_PTRACE"


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that was tried; ``essential`` when nothing works without it."""

    name: str
    ok: bool
    detail: str = ""
    errno: int | None = None
    fix: str = ""
    essential: bool = False


def max_map_count() -> int:
    """Return how many mappings a process may have (Documentation/admin-guide/sysctl/vm.rst)."""
    return _read_number("/proc/sys/vm/max_map_count") or 0


def probe_host() -> list[Probe]:
    """Try everything; raise nothing."""
    return [probe() for probe in _PROBES] + probe_jobs() + probe_capabilities()


def probe_capabilities() -> list[Probe]:
    """Tell which capabilities are held, and what each that is not is lacking for."""
    held = held_capabilities()
    return [
        Probe(
            str(need.capability),
            need.capability in held,
            f"for: {need.purpose}",
            errno=None if need.capability in held else errno.EPERM,
            fix=f"run as root or with it; else: {need.instead}",
        )
        for need in NEEDS
    ]


def _architecture() -> Probe:
    machine = platform.machine()
    return Probe(
        "architecture",
        machine == "x86_64",
        machine,
        fix="use an x86-64 host: injection is written for no other yet",
        essential=True,
    )


def _userfaultfd() -> Probe:
    """Direct and passed both need one of these two to work for us."""
    return _try_open("userfaultfd(2)", Userfaultfd.open, "a kernel with CONFIG_USERFAULTFD")


def _userfaultfd_device() -> Probe:
    return _try_open(
        DEVICE, Userfaultfd.open_through_device, f"a kernel of 6.1 or later, and access to {DEVICE}"
    )


def _try_open(name: str, opener: Callable[[], Userfaultfd], need: str) -> Probe:
    try:
        with opener():
            return Probe(name, ok=True)
    except (UffdballoonError, OSError) as error:
        number = error.errno
        denied = number in (errno.EPERM, errno.EACCES)
        return Probe(
            name,
            ok=False,
            detail=os.strerror(number) if number else str(error),
            errno=number,
            fix=_RUN_AS_ROOT if denied else f"it takes {need}",
        )


def _features() -> Probe:
    wanted = (
        Feature.THREAD_ID
        | Feature.PAGEFAULT_FLAG_WP
        | Feature.MISSING_SHMEM
        | Feature.MISSING_HUGETLBFS
        | Feature.WP_HUGETLBFS_SHMEM
    )
    for opener in (Userfaultfd.open, Userfaultfd.open_through_device):
        try:
            with opener() as uffd:
                known = uffd.api(Feature(0))
        except (UffdballoonError, OSError):
            continue
        lacking = [flag.name or "" for flag in wanted & ~known]
        return Probe(
            "userfaultfd features",
            not lacking,
            f"lacks {', '.join(lacking)}" if lacking else f"{known.bit_count()} known",
            fix="a newer kernel: reads of the balloon are granted instead of answered with zeros",
        )
    return Probe("userfaultfd features", ok=False, detail="no userfaultfd to ask", fix=_RUN_AS_ROOT)


def _minor_faults() -> Probe:
    wanted = Feature.MINOR_SHMEM | Feature.MINOR_HUGETLBFS
    try:
        lacking = [flag.name or "" for flag in wanted & ~query_features()]
    except (UffdballoonError, OSError):
        return Probe(
            "userfaultfd minor faults",
            ok=False,
            detail="no userfaultfd to ask",
            fix=_RUN_AS_ROOT,
        )
    return Probe(
        "userfaultfd minor faults",
        not lacking,
        f"lacks {', '.join(lacking)}" if lacking else "",
        fix="Linux 5.14 or later: what a vhost-user process fills of the balloon is not trapped",
    )


def _pidfd_getfd() -> Probe:
    pidfd = os.pidfd_open(os.getpid())
    try:
        os.close(duplicate_fd(pidfd, pidfd, pid=os.getpid()))
    except UffdballoonError as error:
        return Probe(
            "pidfd_getfd",
            ok=False,
            detail=error.why,
            errno=error.errno,
            fix="a kernel of 5.6 or later",
            essential=True,
        )
    finally:
        os.close(pidfd)
    return Probe("pidfd_getfd", ok=True, essential=True)


def _ptrace() -> Probe:
    capable = Capability.SYS_PTRACE in held_capabilities()
    scope = _read_number(_PTRACE_SCOPE) or 0
    ok = capable and scope < _NO_ATTACH
    return Probe(
        "ptrace",
        ok,
        f"CAP_SYS_PTRACE {'held' if capable else 'not held'}, yama ptrace_scope {scope}",
        errno=None if ok else errno.EPERM,
        fix=_RUN_AS_ROOT if not capable else "yama ptrace_scope 3 lasts until the next boot",
    )


def _attach_to_own() -> Probe:
    """Our own user's QEMU needs no capability of ours, but a device that we may open."""
    capable = Capability.SYS_PTRACE in held_capabilities()
    scope = _read_number(_PTRACE_SCOPE) or 0
    lacking = []
    if scope and not capable:
        lacking.append(f"{Capability.SYS_PTRACE} (yama ptrace_scope is {scope})")
    if not may_use_userfaultfd():
        lacking.append(f"access to {DEVICE}")
    ok = not lacking and scope < _NO_ATTACH
    return Probe(
        ATTACH_TO_OWN,
        ok,
        f"uid {os.geteuid()}" + (f"; lacks {', '.join(lacking)}" if lacking else ""),
        errno=None if ok else errno.EPERM,
        fix=f"run as root, or give this user {' and '.join(lacking)}",
    )


def may_use_userfaultfd() -> bool:
    """Tell whether a target without privileges can have one: by the device, or by sysctl."""
    return os.access(DEVICE, os.R_OK, effective_ids=True) or may_anybody_use_userfaultfd()


def may_anybody_use_userfaultfd() -> bool:
    """Tell whether userfaultfd(2) needs no privilege here."""
    return bool(_read_number("/proc/sys/vm/unprivileged_userfaultfd"))


def probe_jobs() -> list[Probe]:
    """Tell of each job whether it can be done to another user's QEMU, and what is lacking."""
    held = held_capabilities()
    scope = _read_number(_PTRACE_SCOPE) or 0
    probes = []
    for job in JOBS:
        lacking = job.lacking(held)
        ok = not lacking and (scope < _NO_ATTACH or job is INSPECT)
        probes.append(
            Probe(
                job_name(job),
                ok,
                f"lacks {', '.join(lacking)}" if lacking else "",
                errno=None if ok else errno.EPERM,
                fix=f"run as root, or with {' and '.join(lacking)}"
                if lacking
                else "yama ptrace_scope 3 lasts until the next boot",
            )
        )
    return probes


def job_name(job: Job) -> str:
    return f"another user's QEMU: {job.name}"


def _pagemap() -> Probe:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        resident(fd, HvaRange.of(0x10000, 4096))
    except UffdballoonError as error:
        return Probe("pagemap", ok=False, detail=error.why, errno=error.errno, fix=_RUN_AS_ROOT)
    finally:
        os.close(fd)
    return Probe("pagemap", ok=True)


def _map_count() -> Probe:
    limit = max_map_count()
    enough = 65530
    return Probe(
        "vm.max_map_count", limit >= enough, str(limit), fix=f"sysctl vm.max_map_count={enough}"
    )


def _thp() -> Probe:
    settings = read_thp_settings()
    return Probe(
        "transparent huge pages",
        settings is not None,
        settings.describe() if settings else "there are none",
        fix="none needed",
    )


def _hugepages() -> Probe:
    total = _read_number("/proc/sys/vm/nr_hugepages")
    return Probe(
        "hugetlbfs",
        total is not None,
        f"{total} huge pages reserved",
        fix="a kernel with CONFIG_HUGETLBFS, for --granule huge2m only",
    )


def _kvm() -> Probe:
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Probe(
            "/dev/kvm",
            ok=False,
            detail=error.strerror or "",
            errno=error.errno,
            fix="load kvm-intel or kvm-amd; guests under TCG are enforced all the same",
        )
    try:
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
    except OSError as error:
        return Probe(
            "/dev/kvm", ok=False, detail=error.strerror or "", errno=error.errno, fix="enable VT-x"
        )
    finally:
        os.close(fd)
    return Probe("/dev/kvm", ok=True)


def _trace() -> Probe:
    try:
        with Trace(os.getpid()) as trace:
            return Probe("tracing of system calls", ok=True, detail=f"by {trace.source}")
    except UffdballoonError as error:
        return Probe(
            "tracing of system calls",
            ok=False,
            detail=f"{error.what}: {error.why}",
            errno=error.errno,
            fix=f"{error.hint}; without it the contract told is not to be had "
            "for what the guest's own driver gives up",
        )


def _libvirt() -> Probe:
    lacking = lacking_modules()
    return Probe(
        "libvirt's Python binding",
        not lacking,
        f"no module {', '.join(lacking)}" if lacking else "",
        fix=f"{INSTALL}; without it a domain of libvirt is attached to without its monitor",
    )


def _read_number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


_PROBES = (
    _architecture,
    _ptrace,
    _attach_to_own,
    _pidfd_getfd,
    _userfaultfd,
    _userfaultfd_device,
    _features,
    _minor_faults,
    _pagemap,
    _map_count,
    _thp,
    _hugepages,
    _kvm,
    _trace,
    _libvirt,
)
