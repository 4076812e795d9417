# SPDX-License-Identifier: GPL-2.0-or-later
"""maps, mountinfo and status as the kernel writes them, and as nobody should."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdballoon.errors import TargetGoneError
from uffdballoon.host.procfs import (
    Mapping,
    file_system_of,
    locked_bytes_of,
    parse_file_system,
    parse_locked_bytes,
    parse_maps,
    read_mappings,
    stretches_of_size,
)
from uffdballoon.model.addresses import PAGE_BYTES, HvaRange

_NO_PID = 1 << 22  # PID_MAX_LIMIT: no process has it
_paths = st.text("a/ ()[]\\'\"\t\r\x0b\x1c\u2028\u00e9-", max_size=16).map(str.strip)


@st.composite
def _mappings(draw: st.DrawFn) -> list[Mapping]:
    """Draw mappings one behind the other, as maps lists them."""
    found, at = [], 1 << 16
    for _ in range(draw(st.integers(0, 6))):
        at += draw(st.integers(0, 3)) * PAGE_BYTES
        size = draw(st.integers(1, 8)) * PAGE_BYTES
        found.append(
            Mapping(
                span=HvaRange.of(at, size),
                perms=draw(st.sampled_from(["rw-p", "r--s", "---p", "rwxs"])),
                offset_bytes=draw(st.integers(0, 1 << 40)) * PAGE_BYTES,
                device=draw(st.sampled_from(["00:00", "fd:01", "103:0a"])),
                inode=draw(st.sampled_from([0, 77, (1 << 64) - 1])),
                path=draw(_paths.map(str.lstrip)),
            )
        )
        at += size
    return found


def _written(mapping: Mapping) -> str:
    """Write a line as fs/proc/task_mmu.c: show_map_vma() does."""
    head = (
        f"{mapping.span.start:08x}-{mapping.span.end:08x} {mapping.perms} "
        f"{mapping.offset_bytes:08x} {mapping.device} {mapping.inode} "
    )
    return (head.ljust(73) + mapping.path if mapping.path else head) + "\n"


@settings(max_examples=30)
@given(_mappings())
def test_maps_are_read_as_the_kernel_writes_them(mappings: list[Mapping]) -> None:
    assert parse_maps("".join(map(_written, mappings))) == mappings


@settings(max_examples=30)
@given(_mappings())
def test_lines_of_another_shape_between_them_change_nothing(mappings: list[Mapping]) -> None:
    noise = "Size: 4 kB\n\n7f00-8000 rw\n7f00-8000 rw-p 0 00:00 x\n"
    text = "".join(noise + _written(mapping) for mapping in mappings)
    assert parse_maps(text) == mappings


@settings(max_examples=30)
@given(_mappings(), st.integers(1, 16))
def test_what_is_found_by_its_size_is_writable_and_of_that_size(
    mappings: list[Mapping], pages: int
) -> None:
    for span, first in stretches_of_size(mappings, pages * PAGE_BYTES):
        assert span.size_bytes == pages * PAGE_BYTES
        assert span.start == first.span.start
        inside = [m for m in mappings if m.span.overlaps(span)]
        assert sum(m.span.size_bytes for m in inside) == span.size_bytes
        assert {(m.perms, m.path, m.inode) for m in inside} == {
            (first.perms, first.path, first.inode)
        }


@settings(max_examples=30)
@given(_mappings())
def test_a_mapping_alone_is_always_found(mappings: list[Mapping]) -> None:
    for mapping in mappings:
        if mapping.perms.startswith("rw") and not mapping.path.startswith("["):
            found = stretches_of_size(mappings, mapping.span.size_bytes)
            assert mapping.span in [span for span, _ in found]


@pytest.mark.parametrize("name", ["[heap]", "[stack]", "[vdso]", "[anon:x]"])
def test_memory_of_a_name_of_the_kernels_is_no_candidate(name: str) -> None:
    line = f"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 {name}\n"
    assert stretches_of_size(parse_maps(line), PAGE_BYTES) == []


MOUNTS = """\
21 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
25 28 0:24 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,inode64
28 1 254:1 / / rw,relatime shared:1 master:2 propagate_from:3 - ext4 /dev/vda1 rw
31 28 0:30 / /dev/hugepages rw,relatime - hugetlbfs hugetlbfs rw,pagesize=2M
40 28 0:36 / /mnt/a\\040-\\040b rw - tmpfs a\\040-\\040b rw
"""


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("00:18", "tmpfs"),
        ("fe:01", "ext4"),
        ("00:1e", "hugetlbfs"),
        ("00:24", "tmpfs"),
        ("00:01", ""),
        ("00:00", ""),
    ],
)
def test_the_file_system_of_a_mapping_is_that_of_its_device(device: str, kind: str) -> None:
    assert parse_file_system(MOUNTS, Mapping(HvaRange.of(0, 1), "rw-s", 0, device, 1, "")) == kind


@given(st.text(max_size=80))
def test_no_mountinfo_is_too_odd(text: str) -> None:
    mapping = Mapping(HvaRange.of(0, 1), "rw-s", 0, "00:18", 1, "")
    assert isinstance(parse_file_system(text, mapping), str)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("VmPeak:\t  10 kB\nVmLck:\t    2048 kB\nVmPin:\t 7 kB\n", 2 << 20),
        ("VmLck:\t       0 kB\n", 0),
        ("State:\tZ (zombie)\n", 0),
        ("", 0),
        ("Name:\tVmLck: 9 kB\nVmLck:\t4 kB\n", 4096),
        ("VmLck:\t9 MB\n", 0),
    ],
)
def test_locked_memory_is_read_in_bytes(text: str, size_bytes: int) -> None:
    assert parse_locked_bytes(text) == size_bytes


def test_our_own_memory_is_read() -> None:
    mappings = read_mappings(os.getpid())
    assert any(mapping.path == "[stack]" for mapping in mappings)
    assert [m.span for m in mappings] == sorted(m.span for m in mappings)
    assert locked_bytes_of(os.getpid()) >= 0


def test_a_process_that_there_is_not_has_ended() -> None:
    mapping = Mapping(HvaRange.of(0, 1), "rw-s", 0, "00:18", 1, "")
    for ask in (read_mappings, locked_bytes_of, lambda pid: file_system_of(pid, mapping)):
        with pytest.raises(TargetGoneError) as gone:
            ask(_NO_PID)
        assert gone.value.pid == _NO_PID
