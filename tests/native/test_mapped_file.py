# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind a mapping is told by the mapped file."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from uffdballoon.host import mapped_file as module
from uffdballoon.host.mapped_file import mapped_file, page_bytes_of
from uffdballoon.host.procfs import Mapping, locked_bytes_of, read_mappings
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.needs_root

_SIZE = 2 * HUGE_BYTES
_MFD_HUGETLB_2MB = os.MFD_HUGETLB | os.MFD_HUGE_2MB


@contextlib.contextmanager
def _mapping_of(fd: int, flags: int = mmap.MAP_SHARED) -> Iterator[Mapping]:
    """Map a file, or anonymous memory with -1, and find the mapping that is new."""
    before = {mapping.span.start for mapping in read_mappings(os.getpid())}
    with mmap.mmap(fd, _SIZE, flags=flags):
        (found,) = (
            mapping
            for mapping in read_mappings(os.getpid())
            if mapping.span.size_bytes == _SIZE and mapping.span.start not in before
        )
        yield found


def test_shared_anonymous_memory_is_the_kernels_own_shmem() -> None:
    with _mapping_of(-1, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as mapping:
        file = mapped_file(os.getpid(), mapping)
        assert (file.is_shmem, file.is_internal, file.page_bytes) == (True, True, PAGE_BYTES)
        assert mapping.path == "/dev/zero (deleted)"


def test_a_private_mapping_of_a_device_is_no_shmem() -> None:
    fd = os.open("/dev/zero", os.O_RDWR)
    try:
        with _mapping_of(fd, mmap.MAP_PRIVATE) as mapping:
            file = mapped_file(os.getpid(), mapping)
            assert not file.is_shmem
            assert file.description == "the device /dev/zero"
    finally:
        os.close(fd)


def test_a_file_that_is_named_as_shared_anonymous_memory_is_told_by_what_it_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "zero"
    path.write_bytes(bytes(_SIZE))
    with path.open("r+b") as file:
        path.unlink()
        with _mapping_of(file.fileno()) as mapping:
            assert mapping.path.endswith("zero (deleted)")
            found = mapped_file(os.getpid(), mapping)
            assert not found.is_shmem
            assert "a file on " in found.description


@pytest.mark.takes_huge_pages
@pytest.mark.parametrize("is_asked", [True, False], ids=["kernel", "file"])
def test_the_page_size_is_told_by_the_kernel_or_else_by_the_file(
    monkeypatch: pytest.MonkeyPatch, *, is_asked: bool
) -> None:
    if not is_asked:  # as a kernel before Linux 6.11 would: ENOTTY
        monkeypatch.setattr(module, "_PROCMAP_QUERY", 0xC06866FF)
    with HugePagePool(4):
        for flags, size in ((_MFD_HUGETLB_2MB, HUGE_BYTES), (0, PAGE_BYTES)):
            fd = os.memfd_create("ram", flags)
            os.ftruncate(fd, _SIZE)
            with _mapping_of(fd) as mapping:
                assert page_bytes_of(os.getpid(), mapping) == size
            os.close(fd)


def test_a_process_that_locks_nothing_says_so() -> None:
    assert locked_bytes_of(os.getpid()) == 0
