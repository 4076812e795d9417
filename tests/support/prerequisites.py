# SPDX-License-Identifier: GPL-2.0-or-later
"""What a marked test needs of the host, and what to do where it is lacking.

``UFFDBALLOON_REQUIRE`` has three states: unset, a test that cannot run is skipped with the
reason; ``1``, a missing prerequisite is an error; ``0``, marked tests are off.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# include/uapi/linux/kvm.h, userfaultfd.h
_KVM_CREATE_VM = 0xAE01
_USERFAULTFD_IOC_NEW = 0xAA00


def lacking_root() -> str | None:
    return None if os.geteuid() == 0 else "not run as root"


def lacking_qemu() -> str | None:
    found = shutil.which("qemu-system-x86_64")
    return None if found else "no qemu-system-x86_64 on PATH (apt-get install qemu-system-x86)"


def lacking_kvm() -> str | None:
    return _try_device("/dev/kvm", _KVM_CREATE_VM, 0)


def lacking_userfaultfd() -> str | None:
    return _try_device("/dev/userfaultfd", _USERFAULTFD_IOC_NEW, os.O_CLOEXEC)


def lacking_ptrace() -> str | None:
    """Ask for the one switch that refuses even a parent; the rest is shown by the tests."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and int(scope.read_text()) > (2 if os.geteuid() == 0 else 1):
        return f"kernel.yama.ptrace_scope is {scope.read_text().strip()}"
    return None


def _try_device(path: str, request: int, argument: int) -> str | None:
    """Make something of a device's ioctl and close it again: having the node is not enough."""
    try:
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{path}: {error.strerror}"
    try:
        os.close(fcntl.ioctl(device, request, argument))
    except OSError as error:
        return f"{path} opens, but does not work: {error.strerror}"
    finally:
        os.close(device)
    return None


PREREQUISITES: dict[str, Callable[[], str | None]] = {
    "needs_root": functools.cache(lacking_root),
    "needs_qemu": functools.cache(lacking_qemu),
    "needs_kvm": functools.cache(lacking_kvm),
    "needs_userfaultfd": functools.cache(lacking_userfaultfd),
    "needs_ptrace": functools.cache(lacking_ptrace),
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
