# SPDX-License-Identifier: GPL-2.0-or-later
"""A marker that the guest wrote at a gpa is found at the hva that discovery gives."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Command
from uffdballoon.errors import QmpError, UnsupportedError
from uffdballoon.host.process import read_memory
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import Gpa, GpaRange
from uffdballoon.model.ram import Backing, Layout
from uffdballoon.session import look_at
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_qemu]

_4G = 4 << 30


def _layout(qemu: Qemu, *, by_monitor: bool) -> Layout:
    with Target.open(qemu.pid) as target:
        return look_at(target, str(qemu.qmp_path) if by_monitor else None)[0]


def _check_markers(qemu: Qemu, layout: Layout, *gpas: int) -> None:
    """Have the guest write a word at each gpa, and read it at the translated hva."""
    for gpa in gpas:
        marker = 0xB1A00000 | (gpa >> 20) & 0xFFFF
        qemu.guest.write(gpa, marker)
        hva, _ = layout.to_hva(GpaRange.of(gpa, 4))
        assert struct.unpack("<I", read_memory(qemu.pid, hva)) == (marker,)
        assert layout.to_gpa(hva.start) == gpa


@pytest.mark.parametrize("by_monitor", [True, False])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_ram_on_both_sides_of_the_pci_hole(
    machine: str,
    by_monitor: bool,  # noqa: FBT001 - pytest gives it
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    extra = ("-machine", "q35") if machine == "q35" else ()
    options = QemuOptions(
        accel=Accel.TCG, memory=Memory(size_bytes=5 << 30), balloon=False, extra=extra
    )
    qemu = start_qemu(options)
    layout = _layout(qemu, by_monitor=by_monitor)
    low_end = (2 if machine == "q35" else 3) << 30
    assert bool(layout.unknown) is not by_monitor
    _check_markers(qemu, layout, 16 << 20, low_end - 4096, _4G, _4G + (5 << 30) - low_end - 4096)


def test_two_nodes_and_a_plugged_dimm(start_qemu: Callable[[QemuOptions], Qemu]) -> None:
    memory = Memory(size_bytes=256 << 20, nodes=2, slots=2, max_bytes=1 << 30)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    qemu.monitor.execute(
        "object-add", **{"qom-type": "memory-backend-ram", "id": "plugged", "size": 128 << 20}
    )
    qemu.monitor.execute("device_add", driver="pc-dimm", id="dimm0", memdev="plugged", node=1)
    layout = _layout(qemu, by_monitor=True)
    nodes = {block.idstr: block.numa_node for block in layout.blocks}
    assert nodes == {"ram0": 0, "ram1": 1, "plugged": 1}
    plugged = next(s for s in layout.segments if s.block.idstr == "plugged")
    assert plugged.size_bytes == 128 << 20
    _check_markers(qemu, layout, 32 << 20, 200 << 20, plugged.gpa + 4096)


def test_several_nodes_cannot_be_told_from_outside(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=256 << 20, nodes=2)))
    with pytest.raises(UnsupportedError) as refused:
        _layout(qemu, by_monitor=False)
    assert "--qmp" in refused.value.hint


@pytest.mark.parametrize("by_monitor", [True, False])
@pytest.mark.parametrize("backing", [Backing.MEMFD, Backing.TMPFS])
def test_shared_backings_are_told_apart(
    backing: Backing,
    by_monitor: bool,  # noqa: FBT001 - pytest gives it
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    memory = Memory(size_bytes=192 << 20, backing=backing, share=True)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    layout = _layout(qemu, by_monitor=by_monitor)
    (block,) = layout.blocks
    assert (block.backing, block.shared, block.page_bytes) == (backing, True, 4096)
    _check_markers(qemu, layout, 32 << 20)


@pytest.mark.usefixtures("huge_pages")
@pytest.mark.parametrize("by_monitor", [True, False])
def test_hugetlbfs_is_told_with_its_page_size(by_monitor: bool) -> None:  # noqa: FBT001 - pytest gives it
    memory = Memory(size_bytes=128 << 20, backing=Backing.HUGETLBFS, share=True)
    # Not by the fixture: the guest must end before its huge pages are given back.
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu:
        layout = _layout(qemu, by_monitor=by_monitor)
        (block,) = layout.blocks
        assert (block.backing, block.page_bytes) == (Backing.HUGETLBFS, 2 << 20)
        _check_markers(qemu, layout, 32 << 20)


def test_the_monitor_of_another_process_is_refused(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    memory = Memory(size_bytes=192 << 20)
    one, other = (start_qemu(QemuOptions(accel=Accel.TCG, memory=memory)) for _ in range(2))
    with Target.open(one.pid) as target, pytest.raises(QmpError) as refused:
        look_at(target, str(other.qmp_path))
    assert str(one.pid) in refused.value.what


def test_a_monitor_that_somebody_holds_is_named_so(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    with (
        Target.open(qemu.pid) as target,
        pytest.raises(QmpError) as refused,
    ):
        look_at(target, str(qemu.directory / "monitor"))
    assert "another client" in refused.value.why


def test_inspect_prints_what_scripts_can_read(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=192 << 20)))
    facts = Command().ask("inspect", qemu.pid, "--qmp", qemu.qmp_path)
    assert facts["ram"][0]["gpa"] == Gpa(0)
    assert facts["vcpus"]
    assert facts["balloon_actual_bytes"] == 192 << 20
