# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM mapped privately from a file: all of it comes back, or it is refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import run
from tests.support.marks import REAL_QEMU
from uffdballoon.errors import UnsupportedError
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.backing import open_backing_file

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = REAL_QEMU

RAM_BYTES = 128 << 20
OWNED = GpaRange.of(16 << 20, 2 << 20)
BALLOON = GpaRange.of(32 << 20, 64 << 20)
SEED = 0xF11E


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[Path]:
    """Make a directory on tmpfs."""
    directory = Path("/dev/shm") / f"uffdballoon-{tmp_path.name}-{os.getpid()}"  # noqa: S108
    directory.mkdir()
    yield directory
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def _attach(qemu: Qemu) -> Session:
    return Session(
        SessionOptions(
            pid=qemu.pid,
            qmp_path=str(qemu.qmp_path),
            observer=ObserverKind.DIRECT,
            policy=parse_policy("observe"),
        )
    )


@contextlib.contextmanager
def _guest(memory: Memory) -> Iterator[Qemu]:
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu:
        qemu.guest.fill(OWNED, SEED, stride_bytes=PAGE_BYTES)
        yield qemu


def _private(backing: Backing, mem_path: Path | None = None) -> Memory:
    path = None if mem_path is None else str(mem_path)
    return Memory(size_bytes=RAM_BYTES, backing=backing, share=False, mem_path=path)


@dataclass(frozen=True, slots=True)
class _Use:
    """What a guest's memory takes of the host: pages of its own, and blocks of its file."""

    private_bytes: int
    file_bytes: int

    @classmethod
    def of(cls, session: Session) -> _Use:
        (block,) = session.layout.blocks
        pid = session.target.pid
        status = Path(f"/proc/{pid}/status").read_text()
        (anon,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
        file = open_backing_file(pid, block)
        try:
            return cls(int(anon.split()[1]) << 10, os.fstat(file.fd).st_blocks * 512)
        finally:
            os.close(file.fd)


@pytest.mark.parametrize("backing", [Backing.MEMFD, Backing.TMPFS], ids=lambda b: b.value)
def test_every_page_is_trapped_again_and_the_files_pages_are_freed_too(backing: Backing) -> None:
    with _guest(_private(backing)) as qemu:
        qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
        assert json.loads(run("inspect", qemu.pid, "--json").stdout)["refusals"] == []
        with _attach(qemu) as session:
            before = _Use.of(session)
            session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
            after = _Use.of(session)
            # What QEMU and the rest of the guest use comes and goes meanwhile.
            assert before.file_bytes - after.file_bytes > 0.9 * BALLOON.size_bytes
            assert before.private_bytes - after.private_bytes > 0.9 * BALLOON.size_bytes
            qemu.guest.touch(BALLOON, Access.WRITE, stride_bytes=PAGE_BYTES)
            session.drain_events()
            state = session.status()
            assert state.touches.violations == BALLOON.size_bytes // PAGE_BYTES
            assert state.ballooned_bytes == 0
        assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0


def test_the_image_of_a_saved_guest_is_refused_and_stays_as_it_was(shm: Path) -> None:
    image = shm / "image"
    image.write_bytes(b"S" * RAM_BYTES)
    before = hashlib.sha256(image.read_bytes()).digest()
    with _guest(_private(Backing.TMPFS, image)) as qemu:
        with pytest.raises(UnsupportedError) as refused:
            _attach(qemu)
        assert "has a name" in refused.value.why
        assert "share=on" in refused.value.hint
        (told,) = json.loads(run("inspect", qemu.pid, "--json").stdout)["refusals"]
        assert "has a name" in told
        assert qemu.guest.read(BALLOON.start) == int.from_bytes(b"SSSS", "little")
        assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
    assert hashlib.sha256(image.read_bytes()).digest() == before


def test_a_file_that_was_removed_is_taken(shm: Path) -> None:
    with _guest(_private(Backing.TMPFS, shm / "ram")) as qemu:
        with pytest.raises(UnsupportedError):
            _attach(qemu)
        (shm / "ram").unlink()
        with _attach(qemu) as session:
            report = session.inflate(BALLOON, Granule.SMALL, guest_agreed=True)
            assert report.done_bytes == BALLOON.size_bytes
            qemu.guest.write(BALLOON.start, 1)
            assert session.status().touches.violations == 1


_HOLDERS = {
    "fd": "import sys; print('up', flush=True); sys.stdin.read()",
    "mapping": (
        "import mmap, os, sys; fd = int(sys.argv[1]); memory = mmap.mmap(fd, 1 << 20); "
        "os.close(fd); os.closerange(3, 64); print('up', flush=True); sys.stdin.read()"
    ),
}


@pytest.mark.parametrize("how", _HOLDERS)
def test_a_file_that_another_process_has_is_refused_until_it_lets_go(how: str) -> None:
    with _guest(_private(Backing.MEMFD)) as qemu:
        with _attach(qemu) as session:
            (block,) = session.layout.blocks
        file = open_backing_file(qemu.pid, block)
        other = subprocess.Popen(
            [sys.executable, "-c", _HOLDERS[how], str(file.fd)],
            pass_fds=[file.fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        os.close(file.fd)
        with other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"up\n"
            with pytest.raises(UnsupportedError) as refused:
                _attach(qemu)
            assert f"process {other.pid} has the file" in refused.value.why
            assert "cannot be attached" in run("inspect", qemu.pid).stderr
            other.kill()
        with _attach(qemu) as session:
            assert session.status().ballooned_bytes == 0


@pytest.mark.takes_huge_pages
def test_a_named_file_of_huge_pages_is_taken_while_it_is_empty(tmp_path: Path) -> None:
    unit = HUGE_BYTES
    with HugePagePool(RAM_BYTES // unit + 2) as pool, HOST.hugetlbfs(tmp_path) as mount:
        with _guest(_private(Backing.HUGETLBFS, Path(mount) / "ram")) as qemu:
            qemu.guest.fill(BALLOON, SEED, stride_bytes=PAGE_BYTES)
            with _attach(qemu) as session:
                free = pool.free()
                session.inflate(BALLOON, Granule.HUGE2M, guest_agreed=True)
                assert pool.free() - free == BALLOON.size_bytes // unit
                qemu.guest.touch(BALLOON, Access.WRITE, stride_bytes=unit)
                session.drain_events()
                assert session.status().touches.violations == BALLOON.size_bytes // unit
            assert qemu.guest.verify(OWNED, SEED, stride_bytes=PAGE_BYTES).bad_lines == 0
        (Path(mount) / "ram").unlink(missing_ok=True)


@pytest.mark.parametrize("share", [False, True], ids=["private", "shared"])
def test_a_file_of_a_disk_is_refused_with_its_file_system(tmp_path: Path, *, share: bool) -> None:
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", tmp_path], capture_output=True, check=True
    ).stdout.decode()
    assert "tmpfs" not in kind
    memory = Memory(
        size_bytes=RAM_BYTES, backing=Backing.TMPFS, share=share, mem_path=str(tmp_path)
    )
    with Qemu(QemuOptions(accel=Accel.TCG, memory=memory)) as qemu:
        with pytest.raises(UnsupportedError) as refused:
            _attach(qemu)
        assert "a file on " in refused.value.what
        assert "unknown" not in refused.value.what
        assert "from the file" in refused.value.why
