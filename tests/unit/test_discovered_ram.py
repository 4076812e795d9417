# SPDX-License-Identifier: GPL-2.0-or-later
"""Where guest RAM is, by the monitor's answers or by what can be seen, of a process made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from uffdballoon.errors import UnsupportedError
from uffdballoon.host.procfs import Mapping, parse_maps
from uffdballoon.model.addresses import HUGE_BYTES
from uffdballoon.model.ram import Backing, Layout
from uffdballoon.vmm.qemu import discovery
from uffdballoon.vmm.qemu.cmdline import parse_cmdline
from uffdballoon.vmm.qemu.discovery import discover
from uffdballoon.vmm.qemu.facts import MonitorFacts, RamBlockFact, RamSection, SparseDevice

if TYPE_CHECKING:
    from collections.abc import Mapping as Dict

_G = 1 << 30
_HVA = 0x7F0000000000
_PAGE = 4096


@pytest.fixture(autouse=True)
def maps(monkeypatch: pytest.MonkeyPatch) -> list[Mapping]:
    """Stand in for /proc; what is mapped is put into the list."""
    mapped: list[Mapping] = []

    def page_bytes_of(_pid: int, mapping: Mapping) -> int:
        return HUGE_BYTES if "hugepages" in mapping.path else _PAGE

    def mapped_file(_pid: int, mapping: Mapping) -> object:
        internal = mapping.path.startswith(("/memfd:", "/dev/zero"))
        shmem = internal or mapping.path.startswith("/dev/shm/")  # noqa: S108 - a name
        description = f"a file on ext4 ({mapping.path})"
        return SimpleNamespace(is_shmem=shmem, is_internal=internal, description=description)

    monkeypatch.setattr(discovery, "read_mappings", lambda _pid: mapped)
    monkeypatch.setattr(discovery, "options_of", lambda _pid, cmdline: parse_cmdline(cmdline))
    monkeypatch.setattr(discovery, "page_bytes_of", page_bytes_of)
    monkeypatch.setattr(discovery, "mapped_file", mapped_file)
    monkeypatch.setattr(discovery, "root_of", lambda _pid: "/")
    return mapped


def mapped(start: int, size_bytes: int, path: str = "", kind: str = "rw-p") -> list[Mapping]:
    """Return memory with its guard page, as QEMU maps it."""
    end = start + size_bytes
    inode = 7 if path else 0
    line = f"{start:x}-{end:x} {kind} 00000000 00:01 {inode} {path}\n"
    return parse_maps(f"{line}{end:x}-{end + _PAGE:x} ---p 00000000 00:00 0\n")


def told(
    sections: list[RamSection], hvas: Dict[int, int], *blocks: RamBlockFact, **more: object
) -> MonitorFacts:
    memdevs = frozenset(section.idstr for section in sections if "vram" not in section.idstr)
    values: dict[str, object] = {"memdevs": memdevs, **more}
    return MonitorFacts("9.2.0", tuple(sections), blocks, hvas, **values)  # type: ignore[arg-type]


def places(layout: Layout) -> list[tuple[int, int, int]]:
    return [(s.gpa, s.size_bytes, s.hva) for s in layout.segments]


def refusal(*cmdline: str, facts: MonitorFacts | None = None) -> str:
    with pytest.raises(UnsupportedError) as refused:
        discover(7, ("qemu-system-x86_64", *cmdline), facts)
    return f"{refused.value.what}: {refused.value.why}"


def test_a_block_around_the_pci_hole_is_one_of_two_stretches(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, 4 * _G)
    sections = [RamSection(0, 3 * _G, "r0", 0), RamSection(4 * _G, _G, "r0", 3 * _G)]
    facts = told(sections, {0: _HVA, 4 * _G: _HVA + 3 * _G}, RamBlockFact("r0", _PAGE, 4 * _G))
    layout = discover(7, (), facts)
    (block,) = layout.blocks
    assert places(layout) == [(0, 3 * _G, _HVA), (4 * _G, _G, _HVA + 3 * _G)]
    assert (block.idstr, block.memdev, block.numa_node) == ("r0", "r0", 0)
    assert (block.backing, block.shared, block.file_start) == (Backing.ANON, False, 0)
    assert (layout.source, layout.unknown) == ("monitor of QEMU 9.2.0", ())


def test_a_block_that_is_seen_from_its_middle_on_begins_before(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    section = RamSection(0x100000, _G - 0x100000, "r0", 0x100000)
    facts = told([section], {0x100000: _HVA + 0x100000}, RamBlockFact("r0", _PAGE, _G))
    layout = discover(7, (), facts)
    assert layout.blocks[0].hva == _HVA
    assert places(layout) == [(0x100000, _G - 0x100000, _HVA + 0x100000)]


def test_video_memory_is_no_guest_ram(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    sections = [RamSection(0, _G, "r0", 0), RamSection(0xFD000000, 1 << 24, "vga.vram", 0)]
    facts = told(sections, {0: _HVA}, RamBlockFact("r0", _PAGE, _G))
    assert len(discover(7, (), facts).segments) == 1


@pytest.mark.parametrize("lacking", ["hva", "block"])
def test_a_backend_that_the_monitor_tells_half_of_is_named_and_left_out(
    lacking: str, maps: list[Mapping]
) -> None:
    maps += mapped(_HVA, _G)
    sections = [RamSection(0, _G, "r0", 0), RamSection(8 * _G, _G, "r1", 0)]
    hvas = {0: _HVA} if lacking == "hva" else {0: _HVA, 8 * _G: _HVA}
    blocks = [RamBlockFact("r0", _PAGE, _G)]
    if lacking == "hva":
        blocks.append(RamBlockFact("r1", _PAGE, _G))
    layout = discover(7, (), told(sections, hvas, *blocks))
    assert [block.idstr for block in layout.blocks] == ["r0"]
    assert layout.unknown == (
        "what device has 1 GiB of memory backend r1 at gpa 0x200000000: not enforced",
    )


def test_a_virtio_mem_device_is_named_and_left_out(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    sections = [RamSection(0, _G, "r0", 0), RamSection(8 * _G, _G, "vm0", 0)]
    device = SparseDevice("vmem", "vm0", 8 * _G, _G, 0, 0)
    facts = told(sections, {0: _HVA}, RamBlockFact("r0", _PAGE, _G), devices=(device,))
    layout = discover(7, (), facts)
    assert len(layout.segments) == 1
    assert "virtio-mem device vmem" in layout.unknown[0]


def test_a_monitor_of_a_machine_without_known_ram_is_refused() -> None:
    assert "no guest RAM" in refusal(facts=told([RamSection(0, _G, "vga.vram", 0)], {}))


def test_a_monitor_that_points_to_nothing_is_refused(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    facts = told([RamSection(0, _G, "r0", 0)], {0: _HVA - _G}, RamBlockFact("r0", _PAGE, _G))
    assert "maps nothing at" in refusal(facts=facts)


def test_nodes_that_share_a_block_are_cut_apart(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, 4 * _G)
    sections = [RamSection(0, 3 * _G, "pc.ram", 0), RamSection(4 * _G, _G, "pc.ram", 3 * _G)]
    facts = told(sections, {0: _HVA, 4 * _G: _HVA + 3 * _G}, RamBlockFact("pc.ram", _PAGE, 4 * _G))
    cmdline = ("q", "-m", "4G", "-numa", "node,mem=1G", "-numa", "node,mem=3G")
    layout = discover(7, cmdline, facts)
    assert [(b.hva, b.size_bytes, b.numa_node) for b in layout.blocks] == [
        (_HVA, _G, 0),
        (_HVA + _G, 3 * _G, 1),
    ]
    assert [(s.gpa, s.size_bytes, s.block.numa_node) for s in layout.segments] == [
        (0, _G, 0),
        (_G, 2 * _G, 1),
        (4 * _G, _G, 1),
    ]


def test_sizes_of_nodes_that_do_not_add_up_leave_the_node_unknown(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, 4 * _G)
    facts = told([RamSection(0, 4 * _G, "r", 0)], {0: _HVA}, RamBlockFact("r", _PAGE, 4 * _G))
    cmdline = ("q", "-m", "4G", "-numa", "node,mem=1G", "-numa", "node,mem=1G")
    assert [block.numa_node for block in discover(7, cmdline, facts).blocks] == [None]


def test_plugged_memory_has_the_node_that_the_monitor_says(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    maps += mapped(_HVA + 4 * _G, _G)
    sections = [RamSection(0, _G, "r0", 0), RamSection(4 * _G, _G, "dimm", 0)]
    facts = told(
        sections,
        {0: _HVA, 4 * _G: _HVA + 4 * _G},
        *(RamBlockFact(name, _PAGE, _G) for name in ("r0", "dimm")),
        nodes={"dimm": 3},
    )
    assert [block.numa_node for block in discover(7, (), facts).blocks] == [0, 3]


@pytest.mark.parametrize(
    ("path", "kind", "page_bytes", "backing"),
    [
        ("", "rw-p", _PAGE, Backing.ANON),
        ("/memfd:memory-backend-memfd (deleted)", "rw-s", _PAGE, Backing.MEMFD),
        ("/dev/zero (deleted)", "rw-s", _PAGE, Backing.SHMEM),
        ("/dev/shm/ram", "rw-s", _PAGE, Backing.TMPFS),  # noqa: S108 - a name
        ("/dev/hugepages/ram", "rw-s", HUGE_BYTES, Backing.HUGETLBFS),
    ],
)
def test_the_backing_is_told_by_the_file_and_its_pages(
    path: str, kind: str, page_bytes: int, backing: Backing, maps: list[Mapping]
) -> None:
    maps += mapped(_HVA, _G, path, kind)
    facts = told([RamSection(0, _G, "r0", 0)], {0: _HVA}, RamBlockFact("r0", page_bytes, _G))
    (block,) = discover(7, (), facts).blocks
    assert (block.backing, block.shared, block.page_bytes) == (backing, kind[-1] == "s", page_bytes)
    assert block.file_start == (_HVA if path else 0)


def test_memory_that_a_file_would_fill_again_is_refused(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G, "/var/lib/ram", "rw-s")
    facts = told([RamSection(0, _G, "r0", 0)], {0: _HVA}, RamBlockFact("r0", _PAGE, _G))
    assert "a file on ext4 (/var/lib/ram)" in refusal(facts=facts)


def test_huge_pages_of_a_gibibyte_are_refused(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G, "/dev/hugepages/ram", "rw-s")
    facts = told([RamSection(0, _G, "r0", 0)], {0: _HVA}, RamBlockFact("r0", _G, _G))
    assert "in pages of 1024 MiB" in refusal(facts=facts)


def test_without_a_monitor_one_mapping_of_that_size_is_it(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, 5 * _G)
    maps += mapped(_HVA + 64 * _G, _G)
    layout = discover(7, ("q", "-m", "5G,slots=2,maxmem=8G"), None)
    assert places(layout) == [
        (0, 0xA0000, _HVA),
        (0x100000, 3 * _G - 0x100000, _HVA + 0x100000),
        (4 * _G, 2 * _G, _HVA + 3 * _G),
    ]
    assert layout.source == "command line and mappings"
    assert layout.unknown[-1] == "memory that was plugged in, as DIMMs or otherwise"
    assert [(b.idstr, b.memdev) for b in layout.blocks] == [("ram", None)]


@pytest.mark.parametrize("count", [0, 2, 3])
def test_without_a_monitor_none_of_several_is_taken(count: int, maps: list[Mapping]) -> None:
    for number in range(count):
        maps += mapped(_HVA + number * 4 * _G, _G)
    assert f"{count} of its mappings are as large as the guest's RAM" in refusal("-m", "1G")


_NODES = (
    *("-object", "memory-backend-ram,id=a,size=1G", "-object", "memory-backend-memfd,id=b,size=2G"),
    *("-numa", "node,nodeid=1,memdev=a", "-numa", "node,nodeid=0,memdev=b"),
)


def test_nodes_are_laid_out_in_the_order_of_their_numbers(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    maps += mapped(_HVA + 8 * _G, 2 * _G, "/memfd:memory-backend-memfd (deleted)", "rw-s")
    layout = discover(7, ("q", "-m", "3G", *_NODES), None)
    assert [(b.memdev, b.numa_node, b.backing) for b in layout.blocks] == [
        ("a", 1, Backing.ANON),
        ("b", 0, Backing.MEMFD),
    ]
    assert layout.to_gpa(layout.blocks[0].hva) == 2 * _G
    assert layout.unknown[0] == "the blocks' idstr"


def test_nodes_that_are_not_all_of_ram_are_refused(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    assert "not as large as its RAM together" in refusal("-m", "4G", *_NODES)


def test_a_node_of_a_backend_without_a_size_is_refused() -> None:
    told = refusal("-m", "1G", "-object", "memory-backend-ram,id=a", "-numa", "node,memdev=a")
    assert "size of memory backend 'a' is not known" in told
    assert "backend 'x' is not known" in refusal("-m", "1G", "-numa", "node,memdev=x")


def test_two_nodes_that_only_one_mapping_is_like_are_refused(maps: list[Mapping]) -> None:
    maps += mapped(_HVA, _G)
    objects = [f"memory-backend-ram,id={name},size=1G" for name in "ab"]
    told = refusal(
        *("-m", "2G", "-object", objects[0], "-object", objects[1]),
        *("-numa", "node,memdev=a", "-numa", "node,memdev=b"),
    )
    assert "several memory backends are like one of its mappings" in told
