# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of versions of QEMU that cannot be had here, written by hand after their source."""

from __future__ import annotations

from typing import Any

import pytest

from uffdballoon.vmm.qemu.answers import parse_mtree
from uffdballoon.vmm.qemu.asking import collect
from uffdballoon.vmm.qemu.facts import RamSection


def _tree(*rows: str) -> str:
    head = ("FlatView #0", ' AS "memory", root: system', " Root memory region: system")
    return "\r\n".join((*head, *(f"  {row}" for row in rows)))


@pytest.mark.parametrize("end", ["", " KVM", " kvm", " tcg", " [3]", " KVM [3]"])
def test_what_follows_a_region_is_no_part_of_its_name(end: str) -> None:
    row = f"0000000000100000-00000000001fffff (prio 0, ram): my ram @0000000000100000{end}"
    assert parse_mtree(_tree(row)) == (RamSection(0x100000, 0x100000, "my ram", 0x100000),)


def test_memory_that_the_guest_cannot_write_or_that_smm_sees_is_left_out() -> None:
    text = _tree(
        "0000000000000000-00000000000bffff (prio 0, ram): pc.ram kvm",
        "00000000000c0000-00000000000c0fff (prio 0, rom): pc.ram @00000000000c0000 kvm",
        "0000000080000000-0000000080087fff (prio 0, ramd): 0000:01:00.0 BAR 0 mmaps[0] KVM",
        "0000000100000000-000000010fffffff (prio 0, nv-ram): nv0",
    )
    smm = '\r\nFlatView #2\r\n AS "cpu-smm-0", root: memory\r\n Root memory region: memory\r\n'
    row = "  0000000000000000-000000007fffffff (prio 0, ram): pc.ram\r\n"
    assert parse_mtree(text + smm + row) == (RamSection(0, 0xC0000, "pc.ram", 0),)


class _Monitor:
    """The few answers that collect() asks for; memory is at the hva of its gpa."""

    def __init__(self, tree: str, memdevs: list[str], devices: list[Any]) -> None:
        self._tree = tree
        self._answers = {
            "query-memdev": [{"id": name} for name in memdevs],
            "query-version": {"qemu": {"major": 4, "minor": 2, "micro": 1}},
            "query-memory-devices": devices,
            "query-cpus-fast": [],
            "query-balloon": {"actual": 1},
        }

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401
        del arguments
        return self._answers[command]

    def hmp(self, line: str) -> str:
        if line.startswith("gpa2hva"):
            gpa = line.split()[1]
            return f"Host virtual address for {gpa} (x) is {gpa}"
        return self._tree if "mtree" in line else ""


def test_before_5_0_the_ram_of_m_alone_has_no_backend() -> None:
    tree = _tree(
        "0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM",
        "00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM",
    )
    facts = collect(_Monitor(tree, [], []))
    assert facts.ram == {"pc.ram": "pc.ram"}
    assert facts.hvas == {0: 0}


def test_before_4_0_a_region_is_named_by_the_path_of_its_backend() -> None:
    tree = _tree("0000000000000000-0000000003ffffff (prio 0, ram): /objects/ram-node0")
    assert collect(_Monitor(tree, ["ram-node0"], [])).ram == {"/objects/ram-node0": "ram-node0"}


def test_memory_of_a_virtio_mem_device_is_no_ram_and_is_told() -> None:
    tree = _tree(
        "0000000000000000-00000000000bffff (prio 0, ram): pc.ram",
        "0000000100000000-0000000107ffffff (prio 0, ram): vm0",
    )
    data = {
        "id": "vmem",
        "memdev": "/objects/vm0",
        "memaddr": 1 << 32,
        "max-size": 256 << 20,
        "size": 128 << 20,
        "node": 0,
    }
    facts = collect(_Monitor(tree, ["vm0", "pc.ram"], [{"type": "virtio-mem", "data": data}]))
    assert facts.ram == {"pc.ram": "pc.ram"}
    assert "128 MiB, not enforced" in str(facts.devices[0])
