# SPDX-License-Identifier: GPL-2.0-or-later
"""What a marked test needs of the host, and what to do where it is lacking.

``UFFDBALLOON_REQUIRE`` has three states: unset, a test that cannot run is skipped with the
reason; ``1``, a missing prerequisite is an error; ``0``, marked tests are off. The host is asked
by the probes of ``uffdballoon doctor``, so that a skip and the doctor never disagree.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uffdballoon.errors import LabError
from uffdballoon.host.libvirt_binding import lacking_modules
from uffdballoon.host.probes import Probe, probe_host
from uffdballoon.lab.linux_image import find_packages

if TYPE_CHECKING:
    from collections.abc import Callable


_LIBVIRT_DRIVER = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"


def _lacking_root() -> str | None:
    return None if os.geteuid() == 0 else "not run as root"


def _lacking_qemu() -> str | None:
    found = shutil.which("qemu-system-x86_64")
    return None if found else "no qemu-system-x86_64 on PATH (apt-get install qemu-system-x86)"


def _lacking_libvirt() -> str | None:
    lacking = [name for name in ("libvirtd", "virsh") if shutil.which(name) is None]
    if not Path(_LIBVIRT_DRIVER).exists():
        lacking.append(_LIBVIRT_DRIVER)
    lacking += lacking_modules()
    names = "libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients libvirt-dev"
    return f"no {', '.join(lacking)} (apt-get install {names}; make dev)" if lacking else None


def _lacking_probe(*names: str) -> str | None:
    """Say what fails when none of the named probes is well."""
    probes = [_probes()[name] for name in names]
    if any(probe.ok for probe in probes):
        return None
    return "; ".join(f"{p.name}: {p.detail or 'does not work'} ({p.fix})" for p in probes)


@functools.cache
def _probes() -> dict[str, Probe]:
    return {probe.name: probe for probe in probe_host()}


def _lacking_userfaultfd() -> str | None:
    return _lacking_probe("userfaultfd(2)", "/dev/userfaultfd") or _lacking_probe(
        "userfaultfd features"
    )


@functools.cache
def _lacking_linux_guest() -> str | None:
    try:
        find_packages()
    except LabError as error:
        return str(error)
    return None


PREREQUISITES: dict[str, Callable[[], str | None]] = {
    "needs_root": _lacking_root,
    "needs_qemu": _lacking_qemu,
    "needs_linux_guest": _lacking_linux_guest,
    "needs_libvirt": _lacking_libvirt,
    "needs_kvm": functools.partial(_lacking_probe, "/dev/kvm"),
    "needs_userfaultfd": _lacking_userfaultfd,
    "needs_ptrace": functools.partial(_lacking_probe, "ptrace"),
}


def demand(marker: str) -> None:
    """Skip or fail the running test when what ``marker`` names is lacking or switched off."""
    switch = os.environ.get("UFFDBALLOON_REQUIRE", "")
    if switch == "0":
        pytest.skip(f"{marker}: switched off by UFFDBALLOON_REQUIRE=0")
    lack = PREREQUISITES[marker]()
    if lack is None:
        return
    if switch == "1":
        pytest.fail(f"{marker}: {lack} (UFFDBALLOON_REQUIRE=1 makes this an error)", pytrace=False)
    pytest.skip(f"{marker}: {lack}")
