# SPDX-License-Identifier: GPL-2.0-or-later
"""What a known pattern of a guest's own balloon comes to, run by run and byte by byte."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import attached, refused, run
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.tracing import FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from uffdballoon.lab.qemu_process import QemuProcess

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0x57A7
_PATIENCE_S = 60.0
# Each is one buffer of the queue, so that the balloon does not rest within it.
SINGLE = GpaRange.of(64 << 20, 100 * PAGE_BYTES)  # at every second page
SINGLE_GFN = SINGLE.start // PAGE_BYTES
WHOLE = GpaRange.of((72 << 20) + 5 * PAGE_BYTES, 251 * PAGE_BYTES)  # up to a 256th
WHOLE_GFN = WHOLE.start // PAGE_BYTES
# Files of a page each, of which every second one is removed again: half of their pages are free.
_FILL = (
    "mkdir -p /t && mount -t tmpfs -o size=400m,nr_inodes=0 none /t && cd /t && busybox awk "
    """'BEGIN { for (i = 0; i < 65536; i++) { f = "/t/" i; print "x" > f; close(f) } }' && """
    "ls | busybox grep '[02468]$' | busybox xargs rm"
)
BACK = GpaRange.of(WHOLE.start, 30 * PAGE_BYTES)


@pytest.fixture(params=[Accel.KVM, Accel.TCG], ids=lambda accel: accel.value)
def guest(request: pytest.FixtureRequest, start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=request.param, memory=Memory(size_bytes=RAM_BYTES)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


def _stats_with(qemu: QemuProcess, inflates: int) -> dict[str, Any]:
    """Return what `stats` tells once so many inflates were measured."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        told = run("stats", qemu.pid, "--json")
        assert told.returncode == 0, told.stderr
        found: dict[str, Any] = json.loads(told.stdout)
        if len(found["inflates"]) >= inflates:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _trace_with(qemu: QemuProcess, changes: int, path: Path) -> list[dict[str, Any]]:
    """Return the lines of `stats --trace` once there are so many changes."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        told = run("stats", qemu.pid, "--trace", path)
        assert told.returncode == 0, told.stderr
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if len(lines) > changes:
            return lines
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _replayed(path: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    done = run("bench", "encodings", "--trace", path, "--json", result, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(result.read_text())
    assert found["series"] == []
    return {row["name"]: row for row in found["recorded"]}


def test_a_known_pattern_is_told_exactly_and_kept_and_replayed(guest: Qemu, tmp_path: Path) -> None:
    path, plot = tmp_path / "trace.jsonl", tmp_path / "stats.png"
    with attached(guest):
        guest.guest.balloon_inflate(SINGLE, stride_bytes=2 * PAGE_BYTES)
        _stats_with(guest, 1)
        guest.guest.balloon_inflate(WHOLE)
        single, whole = _stats_with(guest, 2)["inflates"]
        assert single | {"time_ns": 0} == {
            "pages": 100,
            "runs": 100,
            "run_lengths": {"1": 100},
            "orders": {"0": 100},
            "span_pages": 199,
            "wire_bytes": {
                "pfn_array": 400,
                "bitmap": 25,
                "range_list": 1600,
                "order_list": 800,
            },
            "messages": 1,
            "time_ns": 0,
        }
        assert whole | {"time_ns": 0} == {
            "pages": 251,
            "runs": 1,
            "run_lengths": {"128": 1},
            "orders": dict.fromkeys("0134567", 1),  # 5, 6-7, 8-15 and so on to 128-255
            "span_pages": 251,
            "wire_bytes": {"pfn_array": 1004, "bitmap": 32, "range_list": 16, "order_list": 56},
            "messages": 1,
            "time_ns": 0,
        }
        guest.guest.balloon_deflate(BACK)
        header, *changes = _trace_with(guest, 3, path)
        stats = json.loads(run("stats", guest.pid, "--json", "--plot", plot).stdout)
    assert header == {"format": FORMAT, "ram_bytes": stats["ram_bytes"], "left_out": 0}
    assert [(change["inflated"], change["deflated"]) for change in changes] == [
        ([[SINGLE_GFN + 2 * i, 1] for i in range(100)], []),
        ([[WHOLE_GFN, 251]], []),
        ([], [[WHOLE_GFN, 30]]),
    ]
    assert (stats["balloon"]["pages"], stats["balloon"]["runs"]) == (321, 101)
    assert plot.stat().st_size > 0
    rows = _replayed(path, tmp_path)
    assert list(rows) == [
        f"trace.jsonl, {what}" for what in ("inflate 1", "inflate 2", "deflate 1")
    ]
    for row, told in zip(rows.values(), (single, whole), strict=False):
        assert {key: row[key] for key in ("pages", "runs", "orders", "run_lengths")} == {
            key: told[key] for key in ("pages", "runs", "orders", "run_lengths")
        }
    assert rows["trace.jsonl, deflate 1"]["wire_bytes"]["pfn_array"] == 120
    assert guest.guest.verify(OWNED, SEED).bad_lines == 0


@pytest.mark.needs_linux_guest
def test_a_real_driver_takes_single_pages_first_wherever_they_are(tmp_path: Path) -> None:
    """What `bench encodings` simulates: the smallest blocks that are free go first."""
    path = tmp_path / "trace.jsonl"
    wanted = 8192  # pages; of single ones there are four times as many
    with LinuxQemu(QemuOptions(memory=Memory(size_bytes=1 << 30))) as qemu:
        qemu.guest.check(_FILL, _PATIENCE_S)
        with attached(qemu):
            left = (1 << 30) - wanted * PAGE_BYTES
            asked = run("set", qemu.pid, "--balloon", left)
            assert asked.returncode == 0, asked.stderr
            stats = _stats_with(qemu, 1)
            _, *changes = _trace_with(qemu, 1, path)
    runs = [one for change in changes for one in change["inflated"]]
    assert sum(pages for _, pages in runs) == stats["balloon"]["pages"] == wanted
    assert sum(1 for _, pages in runs if pages == 1) > wanted * 3 // 4
    wire = stats["balloon"]["wire_bytes"]
    assert wire["bitmap"] < wire["pfn_array"] < wire["order_list"] < wire["range_list"]


def test_files_that_are_no_trace_and_places_that_are_none_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"format": "uffdballoon balloon 1"}\n')
    assert "line 1" in refused(2, "bench", "encodings", "--trace", bad)
    bad.write_bytes(b"\xff\xfe")
    refused(2, "bench", "encodings", "--trace", bad)
    refused(2, "bench", "encodings", "--trace", tmp_path / "none")
    refused(2, "stats", "--simulate", bad, "--trace", tmp_path / "trace.jsonl")
