# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mappings can be guest RAM: written after what QEMU 7.2 maps, two of them of one size."""

from __future__ import annotations

from pathlib import Path

import pytest

from uffdballoon.host.procfs import parse_maps
from uffdballoon.vmm.qemu.cmdline import parse_cmdline
from uffdballoon.vmm.qemu.matching import candidates, match

_DATA = Path(__file__).parent / "data"
_MAPPINGS = parse_maps((_DATA / "maps-two-of-a-size").read_text())
_SIZE = 256 << 20
_ANON, _MEMFD = 0x7F14ABE00000, 0x7F14C0000000


def _found(*arguments: str) -> list[int]:
    options = parse_cmdline(["qemu", "-m", "256", *arguments])
    return [c.span.start for c in match(options, _MAPPINGS, _SIZE, options.ram_backend)]


def test_what_no_guard_page_follows_or_is_executable_or_begins_amiss_is_no_ram() -> None:
    assert [c.span.start for c in candidates(_MAPPINGS, _SIZE)] == [_ANON, _MEMFD]


def test_the_backend_tells_apart_what_is_of_one_size() -> None:
    backend = ("-M", "memory-backend=m", "-object")
    assert _found() == [_ANON]
    assert _found(*backend, "memory-backend-ram,id=m,size=256M") == [_ANON]
    assert _found(*backend, "memory-backend-memfd,id=m,size=256M") == [_MEMFD]


def test_a_backend_that_is_not_known_is_not_guessed() -> None:
    assert _found("-M", "memory-backend=m") == [_ANON, _MEMFD]


@pytest.mark.parametrize(
    ("root", "seen_in"), [("/", ""), ("/srv/vm", "/srv/vm"), ("/srv/vm", ""), ("/srv", "/srv")]
)
def test_files_are_told_apart_by_the_name_of_their_backend(root: str, seen_in: str) -> None:
    made = f"{seen_in}/vm/qemu_back_mem"
    rows = [
        f"7f1000000000-7f1010000000 rw-s 0 00:19 7 {made}.a.Xy12Zt (deleted)",
        "7f1010000000-7f1010001000 ---p 0 00:00 0",
        f"7f1020000000-7f1030000000 rw-s 0 00:19 8 {made}._objects_b.Q1 (deleted)",
        "7f1030000000-7f1030001000 ---p 0 00:00 0",
    ]
    arguments = ["qemu"]
    for name in ("a", "b", "c"):
        backend = f"memory-backend-file,id={name},size=256M,mem-path=/vm,share=on"
        arguments += ["-object", backend]
    options = parse_cmdline(arguments)
    starts = {
        name: [c.span.start for c in match(options, parse_maps("\n".join(rows)), _SIZE, name, root)]
        for name in ("a", "b", "c")
    }
    assert (starts["a"], starts["b"]) == ([0x7F1000000000], [0x7F1020000000])
    assert starts["c"] == [0x7F1000000000, 0x7F1020000000]


def test_a_mapping_of_another_kind_is_not_ram_though_it_is_the_only_one_of_its_size() -> None:
    options = parse_cmdline(["qemu", "-m", "256"])
    others = [m for m in _MAPPINGS if m.span.start != _ANON]
    assert [c.span.start for c in candidates(others, _SIZE)] == [_MEMFD]
    assert match(options, others, _SIZE, "") == []
