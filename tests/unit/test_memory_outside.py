# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command line and /proc/PID/maps tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.host.procfs import parse_maps
from uffdballoon.vmm.qemu.cmdline import parse_cmdline


@pytest.mark.parametrize(
    ("arguments", "ram_bytes"),
    [
        ([], 128 << 20),
        (["-m", "512"], 512 << 20),
        (["-m", "5G,slots=2,maxmem=8G"], 5 << 30),
        (["-m", "size=134217728B"], 128 << 20),
        (["-m", "nonsense"], None),
        (["-m", "1.5G"], 3 << 29),
        (["-m", "1.1G"], 0x46668000),
        (["-m", "0x100"], 256 << 20),
        (["-m", "0x100M"], 256 << 20),
        (["-m", "131072k"], 128 << 20),
        (["--m", "size=1g"], 1 << 30),
        (["-m", "64,slots=2", "-m", "maxmem=1G"], 64 << 20),
        (["-m", "64", "-m", "96"], 96 << 20),
        (["-m", "0"], 128 << 20),
        (["-S", "-m", "62", "-append", "console=ttyS0"], 62 << 20),
        (["-machine", "memory-backend=a", "-object", "memory-backend-ram,id=a,size=64M"], 64 << 20),
        (["-readconfig", "/vm.conf"], None),
        (["-readconfig", "/vm.conf", "-m", "64"], 64 << 20),
    ],
)
def test_the_size_of_ram_is_in_mebibytes_unless_it_says_otherwise(
    arguments: list[str], ram_bytes: int | None
) -> None:
    assert parse_cmdline(["qemu-system-x86_64", *arguments]).ram_bytes == ram_bytes


def test_machine_and_nodes_are_read() -> None:
    options = parse_cmdline(
        ["qemu", "-machine", "q35,accel=kvm", "-numa", "node,memdev=a", "-numa", "node,memdev=b"]
    )
    assert options.is_q35
    assert options.nodes == {"a": 0, "b": 1}


def test_a_line_of_maps_is_read() -> None:
    (mapping,) = parse_maps(
        "7f5b4bdff000-7f5c0bdff000 rw-s 00001000 00:01 26    /memfd:a file (deleted)\n"
    )
    assert mapping.shared
    assert mapping.path == "/memfd:a file (deleted)"
    assert (mapping.offset_bytes, mapping.inode) == (0x1000, 26)


@given(st.lists(st.text(max_size=30), max_size=8))
def test_no_command_line_is_an_error(arguments: list[str]) -> None:
    parse_cmdline(arguments)
    parse_maps("\n".join(arguments))
