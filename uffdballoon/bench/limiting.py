# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that needs more than its limit: held to it by its balloon, and by a memory cgroup.

It has a disk to swap to. Whose driver was asked swaps what it needs least itself. To the other
nobody tells of its limit, and it runs into it.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.bench.following import reach, settled
from uffdballoon.bench.machine import describe_machine
from uffdballoon.bench.managed import managed
from uffdballoon.daemon import client
from uffdballoon.errors import LabError
from uffdballoon.lab.confinement import NOT_CONFINED, Confinement
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Memory, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.ram import Backing
from uffdballoon.model.records.balloon import LimitChange
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_SIZE_BYTES = 512 << 20
LEAST_SIZE_BYTES = 320 << 20
DEFAULT_SECONDS = 10
_POLICY = "throttle=1000/s"
_PERIOD_S = 0.01
_SEED = 0x5EED
_PATIENCE_S = 240.0
_SLACK_BYTES = 32 << 20  # of QEMU itself, whose own memory is charged to its cgroup as well
_STAT_BLOCK_BYTES = 512  # st_blocks, stat(2)


@dataclass(frozen=True, slots=True)
class _Work:
    """What both guests are given to do: fill so much memory, use it for so long, check all."""

    size_bytes: int
    seconds: int

    @property
    def command(self) -> str:
        return f"guestwork memory {self.size_bytes} {_SEED} {self.seconds}"


class ResidentSampler:
    """Looks every 10 ms how much of a guest's RAM is there; a context manager.

    RAM is one memfd, of which the kernel counts what is allocated: nothing else is in it.
    """

    def __init__(self, pid: int) -> None:
        self._file = _memfd_of(pid)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look_again)
        self.most_bytes = self.samples = 0
        self.longest_gap_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def look(self) -> int:
        return self._file.stat().st_blocks * _STAT_BLOCK_BYTES

    def _look_again(self) -> None:
        last = time.monotonic()
        with contextlib.suppress(FileNotFoundError):  # it has ended
            while not self._ends.wait(_PERIOD_S):
                self.most_bytes = max(self.most_bytes, self.look())
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                last = now
                self.samples += 1


def run(*, size_bytes: int, seconds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Give a guest 1.2 times its limit, half of its RAM, to do; tell what becomes of it."""
    limit_bytes = size_bytes // 2
    work = _Work(limit_bytes * 6 // 5 // PAGE_BYTES * PAGE_BYTES, seconds)
    with _guest(size_bytes, NOT_CONFINED) as qemu:
        progress("without a limit")
        alone = _sampled(qemu, work)
        own_bytes = _own_bytes(qemu.pid)
        progress(f"limited to {format_size(limit_bytes)} by its balloon")
        enforced = _enforced(qemu, work, limit_bytes)
    limited = Confinement(memory_limit_bytes=limit_bytes + own_bytes + _SLACK_BYTES)
    with _guest(size_bytes, limited) as qemu:
        progress(f"limited to {format_size(limit_bytes)} and what QEMU needs itself by a cgroup")
        squeezed = _sampled(qemu, work)
    return {
        "machine": describe_machine(),
        "ram_bytes": size_bytes,
        "limit_bytes": limit_bytes,
        "work_bytes": work.size_bytes,
        "grant_bytes": PAGE_BYTES,
        "policy": _POLICY,
        "host_swap_bytes": _host_swap_bytes(),
        "series": [
            {"name": "without a limit", **alone},
            {"name": "balloon", **enforced},
            {"name": "cgroup", **squeezed},
        ],
        "ratios": {
            "most_resident_bytes: balloon vs limit": enforced["most_resident_bytes"] / limit_bytes,
            "seconds: balloon vs without a limit": enforced["seconds"] / alone["seconds"],
        },
    }


@contextlib.contextmanager
def _guest(size_bytes: int, confinement: Confinement) -> Iterator[LinuxQemu]:
    """Start a Linux guest that swaps to a disk of its own, as large as its RAM."""
    with tempfile.TemporaryDirectory(prefix="uffdballoon-swap-") as directory:
        disk = Path(directory) / "swap"
        with disk.open("wb") as file:
            file.truncate(size_bytes)
        options = QemuOptions(
            memory=Memory(size_bytes=size_bytes, backing=Backing.MEMFD, share=True),
            confinement=confinement,
            extra=(
                *("-drive", f"file={disk},if=none,id=swap,format=raw"),
                *("-device", "nvme,drive=swap,serial=swap"),  # its driver is in Debian's kernel
            ),
        )
        with LinuxQemu(options) as qemu:
            qemu.guest.check("mkswap /dev/nvme0n1 && swapon /dev/nvme0n1")
            yield qemu


def _enforced(qemu: LinuxQemu, work: _Work, limit_bytes: int) -> dict[str, Any]:
    with managed(qemu, "--contract", "cap", "--limit", str(limit_bytes), "--policy", _POLICY):
        client.request(qemu.pid, "limit", LimitChange, size=limit_bytes)
        reach(qemu, limit_bytes)
        settled(qemu.pid)
        return {
            **_sampled(qemu, work),
            "violations": client.status(qemu.pid).touches.violations,
            "answers": qemu.guest.check("echo alive") == "alive\n",
        }


def _outcome(qemu: LinuxQemu, work: _Work) -> dict[str, Any]:
    """Have the guest do its work; tell whether it came to its end, and whether QEMU did."""
    began = time.monotonic()
    pending = qemu.guest.start(work.command)
    told: dict[str, Any] = {"outcome": "unfinished", "bad_words": None}
    try:
        ran = pending.wait(_PATIENCE_S)
    except (LabError, OSError):  # it says nothing, as it has no time to, or is no more
        with contextlib.suppress(LabError):
            qemu.wait_for_exit()
            told["outcome"] = "killed"
    else:
        found = re.search(r"\bbad=(\d+)", ran.output)
        told["outcome"] = "finished" if ran.status == 0 else "failed"
        told["bad_words"] = int(found[1]) if found else None
    return {**told, "seconds": time.monotonic() - began}


def _sampled(qemu: LinuxQemu, work: _Work) -> dict[str, Any]:
    """Have the guest do its work, and see how much of its RAM is there meanwhile."""
    with ResidentSampler(qemu.pid) as sampler:
        outcome = _outcome(qemu, work)
    return {
        **outcome,
        "most_resident_bytes": sampler.most_bytes,
        "samples": sampler.samples,
        "longest_gap_s": sampler.longest_gap_s,
    }


def _memfd_of(pid: int) -> Path:
    """Find the descriptor of the guest's RAM."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            if link.readlink().name.startswith("memfd:memory-backend"):
                return link
    raise LabError("QEMU has no memfd", why="its RAM was to be one")


def _own_bytes(pid: int) -> int:
    """Return what QEMU holds beside the guest's RAM."""
    found = re.search(
        r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    return int(found[1]) << 10 if found else 0


def _host_swap_bytes() -> int:
    found = re.search(r"^SwapTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


HEADER = ("guest", "its work", "s", "words lost", "most resident", "samples", "violations")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table that HEADER heads."""
    return [
        (
            s["name"],
            s["outcome"],
            f"{s['seconds']:.1f}",
            _told(s.get("bad_words")),
            format_size(s["most_resident_bytes"]),
            str(s["samples"]),
            _told(s.get("violations")),
        )
        for s in result["series"]
    ]


def _told(number: int | None) -> str:
    return "-" if number is None else str(number)
