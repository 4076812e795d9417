# SPDX-License-Identifier: GPL-2.0-or-later
"""What a killed process has changed of this host is put right by whoever comes next."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest

from tests.support.command import run
from tests.support.holding import wait_until
from uffdballoon.lab.host_state import HOST, POOL
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.left_behind import tell_left_behind
from uffdballoon.lab.thp import ThpTunings

if TYPE_CHECKING:
    from collections.abc import Iterator

# What they leave on purpose is not for others to put right.
pytestmark = [pytest.mark.needs_root, pytest.mark.alone]

_TUNING = "khugepaged/scan_sleep_millisecs"
_SHORT_BENCHMARK = ("bench", "zap", "--rounds", 1, "--size", "4M")
_PAGES = 3

_CHANGE = f"""
import sys
from pathlib import Path
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.hugepages import HugePagePool
from uffdballoon.lab.thp import ThpTunings
with HugePagePool({_PAGES}), ThpTunings({{"{_TUNING}": "4321"}}), HOST.hugetlbfs(Path(sys.argv[1])):
    print("changed", flush=True)
    sys.stdin.read()
"""

_START = """
import sys
from uffdballoon.lab.confinement import Confinement
from uffdballoon.lab.qemu import Memory, Qemu, QemuOptions
confined = Confinement(memory_limit_bytes=512 << 20)
with Qemu(QemuOptions(memory=Memory(size_bytes=64 << 20), confinement=confined)) as qemu:
    print(qemu.pid, flush=True)
    sys.stdin.read()
"""


class _Host(NamedTuple):
    pages: int
    tuning: str
    mounts: list[str]

    @classmethod
    def now(cls) -> _Host:
        tuning = Path("/sys/kernel/mm/transparent_hugepage", _TUNING)
        return cls(
            pages=int(Path(POOL, "nr_hugepages").read_text()),
            tuning=tuning.read_text().strip(),
            mounts=Path("/proc/self/mounts").read_text().splitlines(),
        )


@contextlib.contextmanager
def _changed_by_another(directory: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _CHANGE, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "changed\n"
        try:
            yield other
        finally:
            other.kill()


def _kill_with_its_guardians(other: subprocess.Popen[str]) -> None:
    """Kill it as the end of a cgroup does."""
    guardians = psutil.Process(other.pid).children()
    assert len(guardians) == 3
    for guardian in guardians:
        guardian.kill()
    other.kill()
    other.wait()


def test_the_next_user_puts_all_right_that_a_killed_one_left(tmp_path: Path) -> None:
    before = _Host.now()
    with _changed_by_another(tmp_path) as other:
        _kill_with_its_guardians(other)
    left = _Host.now()
    assert (left.pages, left.tuning) == (before.pages + _PAGES, "4321")
    assert len(left.mounts) == len(before.mounts) + 1
    with HugePagePool(1):
        now = _Host.now()
        assert now == before._replace(pages=before.pages + 1)
    assert _Host.now() == before
    assert HOST.put_right() == []


def test_the_guardians_put_all_right_at_once(tmp_path: Path) -> None:
    before = _Host.now()
    with _changed_by_another(tmp_path) as other:
        guardians = psutil.Process(other.pid).children()
        other.kill()
    # Each of them puts right what it finds: none is to meet what the next test leaves.
    wait_until(lambda: not any(guardian.is_running() for guardian in guardians))
    assert _Host.now() == before
    assert HOST.put_right() == []


def test_a_benchmark_tells_what_it_has_put_right_first(tmp_path: Path) -> None:
    before = _Host.now()
    with _changed_by_another(tmp_path) as other:
        _kill_with_its_guardians(other)
    done = run(*_SHORT_BENCHMARK)
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if f"process {other.pid} " in line]
    assert len(told) == 3, done.stderr
    assert all(line.startswith("uffdballoon: ") for line in told)
    assert f"process {other.pid} left it at {before.pages + _PAGES}" in done.stderr
    assert _Host.now() == before


def test_who_goes_first_leaves_the_other_what_it_has(tmp_path: Path) -> None:
    before = _Host.now()
    with HugePagePool(2) as pool, ThpTunings({_TUNING: "1234"}):
        free = pool.free()
        with _changed_by_another(tmp_path) as other:
            assert _Host.now()[:2] == (before.pages + 2 + _PAGES, "4321")
            _kill_with_its_guardians(other)
        HOST.put_right()
        assert _Host.now() == before._replace(pages=before.pages + 2, tuning="1234")
        assert pool.free() == free
    assert _Host.now() == before


def test_who_stays_keeps_what_it_has_when_the_first_one_ends(tmp_path: Path) -> None:
    before = _Host.now()
    with contextlib.ExitStack() as first:
        first.enter_context(HugePagePool(2))
        first.enter_context(ThpTunings({_TUNING: "1234"}))
        with _changed_by_another(tmp_path) as other:
            first.close()
            assert _Host.now()[:2] == (before.pages + _PAGES, "4321")
            assert other.stdin is not None
            other.stdin.close()
            assert other.wait() == 0
    assert _Host.now() == before


@pytest.mark.needs_qemu
def test_a_qemu_and_its_cgroup_that_a_killed_run_left_are_told() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        qemu = psutil.Process(int(other.stdout.readline()))
        assert tell_left_behind() == [], "whoever started it is there"
        for child in psutil.Process(other.pid).children():
            if child != qemu:
                child.kill()  # that would end QEMU
        other.kill()
    left = tell_left_behind()
    assert len(left) == 2
    told = f"process {qemu.pid} (qemu-system-x86_64) still runs, which process {other.pid} started"
    assert left[0].startswith(told)
    assert left[1].endswith(f"stays, which process {other.pid} left: Device or resource busy")
    assert qemu.is_running(), "it is somebody else's to end"
    qemu.kill()
    wait_until(lambda: not qemu.is_running())
    done = run(*_SHORT_BENCHMARK)
    assert f"-{other.pid} is removed, which process {other.pid} left" in done.stderr
    assert tell_left_behind() == []
