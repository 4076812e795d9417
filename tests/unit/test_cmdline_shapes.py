# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines as managers write them: size, machine, nodes, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from uffdballoon.errors import UnsupportedError
from uffdballoon.model.addresses import Hva
from uffdballoon.model.ram import Backing, RamBlock
from uffdballoon.target.process import is_vmm
from uffdballoon.vmm.qemu.cmdline import parse_cmdline
from uffdballoon.vmm.qemu.options import parse_config, split_keys
from uffdballoon.vmm.qemu.placement import place, why_unclear

_DATA = Path(__file__).parent / "data"
_G = 1 << 30


def _argv(name: str) -> tuple[str, ...]:
    return tuple((_DATA / name).read_text().splitlines())


def _why(*arguments: str) -> str:
    return why_unclear(parse_cmdline(["qemu-system-x86_64", *arguments]))


def _places(*arguments: str) -> list[tuple[int, int, int]]:
    options = parse_cmdline(["qemu-system-x86_64", *arguments])
    assert not why_unclear(options)
    assert options.ram_bytes is not None
    block = RamBlock("ram", Hva(0), options.ram_bytes, 4096, Backing.ANON, shared=False)
    return [(s.gpa, s.size_bytes, s.block_offset_bytes) for s in place(options, [block])]


def test_the_shape_of_libvirt_is_read() -> None:
    options = parse_cmdline(_argv("argv-libvirt-config"))
    assert (options.ram_bytes, options.max_bytes, options.slots) == (3 * _G, 16 * _G, 16)
    assert options.is_i440fx
    assert options.has_slots
    backend = options.backends[options.ram_backend]
    assert (backend.kind, backend.size_bytes, backend.shared) == (
        "memory-backend-memfd",
        3 * _G,
        True,
    )
    assert not why_unclear(options)


def test_the_shape_of_proxmox_is_read() -> None:
    options = parse_cmdline(_argv("argv-proxmox-pinned"))
    assert options.ram_bytes == 5 * _G
    assert options.machine == "pc-i440fx-9.2+pve1"
    assert options.is_i440fx
    assert options.nodes == {"ram-node0": 0, "ram-node1": 1}
    assert not why_unclear(options)


def test_nodes_without_backends_are_read_with_their_sizes() -> None:
    options = parse_cmdline(_argv("argv-openshift-mem-nodes"))
    assert options.is_q35
    assert options.node_bytes == ((0, 768 << 20), (1, 256 << 20))
    assert not options.nodes


def test_a_node_without_a_number_gets_how_many_came_before() -> None:
    options = parse_cmdline(
        ["qemu", "-numa", "node,cpus=0", "-numa", "dist,src=0,dst=1", "-numa", "node,memdev=m"]
    )
    assert options.nodes == {"m": 1}


@pytest.mark.parametrize(
    "program",
    [
        "/usr/libexec/qemu-kvm",
        "/usr/bin/kvm",
        "/usr/bin/kvm-spice",
        "qemu-system-x86_64-spice",
        "/snap/lxd/current/bin/qemu-system-x86_64",
        "/usr/bin/qemu-system-x86_64 (deleted)",
    ],
)
def test_programs_of_distributors_are_a_qemu(program: str) -> None:
    assert is_vmm(program, (program,))
    assert not is_vmm("/usr/bin/qemu-img", ("qemu-img",))


def test_a_doubled_comma_is_part_of_the_value() -> None:
    assert split_keys("guest=a,,b=c,x=1,y", "") == {"guest": "a,b=c", "x": "1", "y": "on"}


@pytest.mark.parametrize(
    ("machine", "size", "low"),
    [
        ("pc", "3584M", 3 * _G),
        ("pc-i440fx-1.7", "4G", 0xE0000000),
        ("pc-i440fx-2.0", "4G", 3 * _G),
        ("pc-i440fx-10.1", "4G", 3 * _G),
        ("pc-i440fx-bionic", "4G", 3 * _G),
        ("pc-i440fx-focal-hpb", "4G", 3 * _G),
        ("pc-i440fx-rhel7.6.0", "4G", 3 * _G),
        ("pc+pve0", "4G", 3 * _G),
        ("q35+pve0", "4G", 2 * _G),
        ("pc-q35-rhel8.4.0", "4G", 2 * _G),
        ("pc-q35-rhel10.0.0", "4G", 2 * _G),
        ("pc-q35-4.0.1", "2816M", 2 * _G),
        ("pc-q35-xenial", "2816M", 2 * _G),
    ],
)
def test_ram_is_split_where_the_machine_type_does(machine: str, size: str, low: int) -> None:
    (_, (start, rest, _), (high, _, offset)) = _places("-M", f"usb=off,type={machine}", "-m", size)
    assert (start + rest, high, offset) == (low, 4 * _G, low)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-M", "none"), "'none'"),
        (("-M", "xenfv"), "'xenfv'"),
        (("-M", "pc-i440fx-4.2-mine", "-m", "4G"), "differ"),
        (("-M", "pc-i440fx-rhel7.0.0", "-m", "4G"), "differ"),
        (("-M", "pc-q35-1.7", "-m", "4G"), "differ"),
        (("-M", "microvm", "-m", "3G"), "differ"),
        (("-M", "isapc", "-m", "3584M"), "differ"),
        (("-M", "q35,accel=xen"), "Xen"),
        (("-accel", "xen"), "Xen"),
        (("-xen-domid", "7"), "Xen"),
        (("-M", "q35,confidential-guest-support=s"), "encrypted"),
        (("-object", "sev-guest,id=s"), "encrypted"),
        (("-readconfig", "/vm.conf"), "-readconfig /vm.conf"),
        (("-set", "object.m.size=1G"), "-set"),
        (("--preconfig",), "-preconfig"),
        (("-append", "-m", "64"), "-append"),
        (("-object", "{'qom-type':'memory-backend-ram'}"), "JSON"),
        (("-M", "memory.size=1G"), "-machine"),
        (("-m", "2G", "-M", "max-ram-below-4g=1G"), "max-ram-below-4g"),
        (("-M", "q35", "-m", "4G,slots=2,maxmem=1T"), "1 TiB"),
        (("-M", "q35", "-m", "980G"), "1 TiB"),
        (("-m", "4G", "-global", "i440FX-pcihost.pci-hole64-size=1T"), "1 TiB"),
    ],
)
def test_what_is_not_certain_is_refused_with_its_reason(
    arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in _why(*arguments)


def test_another_architecture_is_refused() -> None:
    assert "ppc64" in why_unclear(parse_cmdline(["/usr/bin/qemu-system-ppc64", "-m", "64"]))


def test_ram_above_1_tib_is_certain_where_no_machine_has_it_there() -> None:
    assert not _why("-M", "pc-q35-7.0", "-m", "4G,slots=2,maxmem=1T")
    assert not _why("-M", "q35", "-m", "1G,slots=255,maxmem=4194304M")
    assert not _why("-M", "q35", "-m", "512G")


def test_a_configuration_file_is_merged_where_it_stands() -> None:
    text = '[memory]\n  size = "2G"\n[machine]\ntype="q35"\n[device "a"]\n  driver = "VGA"\n'
    options = parse_cmdline(
        ["kvm", "-m", "size=1G,maxmem=8G", "-readconfig", "x", "-M", "usb=off"], lambda _: text
    )
    assert (options.ram_bytes, options.max_bytes) == (2 * _G, 8 * _G)
    assert options.is_q35
    assert not why_unclear(options)


@pytest.mark.parametrize("text", ['size = "1G"\n', "[memory]\nsize = 1G\n", "\x7fELF"])
def test_what_is_no_configuration_file_is_refused(text: str) -> None:
    assert parse_config(text) is None
    options = parse_cmdline(["kvm", "-readconfig", "x"], lambda _: text)
    assert "-readconfig x" in why_unclear(options)


def test_a_configuration_file_that_cannot_be_read_is_refused_with_its_reason() -> None:
    def refuse(path: str) -> str:
        raise UnsupportedError(path, why="it is gone")

    options = parse_cmdline(["kvm", "-readconfig", "x"], refuse)
    assert options.ram_bytes is None
    assert not options.machine
    assert "it is gone" in why_unclear(options)


def test_of_two_files_that_qemu_may_have_read_by_itself_none_is_chosen() -> None:
    text = '[memory]\n  size = "2G"\n'
    arguments = ["kvm", "-m", "maxmem=8G"]
    options = parse_cmdline(arguments, lambda _: text, ["/etc/qemu/qemu.conf"])
    assert (options.ram_bytes, options.max_bytes) == (2 * _G, 8 * _G)
    assert not why_unclear(options)
    options = parse_cmdline(arguments, lambda _: text, ["/etc/qemu/qemu.conf", "/etc/kvm/x"])
    assert "/etc/kvm/x" in why_unclear(options)
    options = parse_cmdline([*arguments, "-no-user-config"], lambda _: text, ["x", "y"])
    assert options.ram_bytes == 128 << 20
    assert not why_unclear(options)
