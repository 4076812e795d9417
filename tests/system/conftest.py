# SPDX-License-Identifier: GPL-2.0-or-later
"""Real QEMU processes for the tests, each ended by its fixture."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.support.prerequisites import demand
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SMALL = Memory(size_bytes=192 << 20)


@pytest.fixture(params=[Accel.KVM, Accel.TCG], ids=["kvm", "tcg"])
def accel(request: pytest.FixtureRequest) -> Accel:
    demand("needs_qemu")
    if request.param is Accel.KVM:
        demand("needs_kvm")
    assert isinstance(request.param, Accel)
    return request.param


@pytest.fixture
def start_qemu() -> Iterator[Callable[[QemuOptions], Qemu]]:
    """Give what starts a QEMU; all of them end with the test."""
    with contextlib.ExitStack() as running:
        yield lambda options: running.enter_context(Qemu(options))


@pytest.fixture
def qemu(accel: Accel, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    """A small guest under each accelerator."""
    return start_qemu(QemuOptions(accel=accel, memory=SMALL))


@pytest.fixture
def huge_pages() -> Iterator[HugePagePool]:
    """Reserve huge pages for as long as the test runs; its guest must have ended by then."""
    with HugePagePool(96) as pool:
        yield pool
