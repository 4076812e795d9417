# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks run, and say what they measured; no time is asserted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.test_cli import refused, run
from uffdballoon.lab.toucher import Toucher
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_qemu,
    pytest.mark.needs_userfaultfd,
    pytest.mark.needs_ptrace,
]
_LATENCIES = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")


def _bench(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    done = run("bench", *arguments, "--json", result, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    measured: dict[str, Any] = json.loads(result.read_text())
    assert measured["machine"]["kernel"]
    return measured


def _check_latencies(series: list[dict[str, Any]]) -> None:
    for row in series:
        values = [row[name] for name in _LATENCIES]
        assert values == sorted(values)
        assert row["samples"] >= 1000
        assert row["faults_per_s"] > 0
        assert sum(count for _, count in row["histogram"]) == row["samples"]


@pytest.mark.parametrize("backing", ["anon-4k", "anon-thp", "memfd-4k", "hugetlbfs-2m"])
def test_fault_latency_compares_all_handlers(tmp_path: Path, backing: str) -> None:
    measured = _bench(
        tmp_path,
        *("fault-latency", "--backing", backing, "--samples", 1000, "--guest", "none"),
    )
    _check_latencies(measured["series"])
    names = {(row["name"], row["threads"]) for row in measured["series"]}
    assert names >= {
        (name, threads)
        for name in ("plain", "manpage", "best", "engine:observe", "engine:zero-read")
        for threads in (1, 2)
    }
    if backing == "anon-4k":
        assert set(measured["ratios"]) >= {"p50_vs_manpage", "p99_vs_manpage", "p50_vs_best_c"}


def test_fault_latency_in_a_guest(tmp_path: Path) -> None:
    measured = _bench(
        tmp_path,
        *("fault-latency", "--backing", "anon-4k", "--threads", 1, "--samples", 1000),
    )
    backings = {row["backing"] for row in measured["series"]}
    assert backings == {"anon-4k", "qemu-kvm-4k", "qemu-tcg-4k"}
    _check_latencies(measured["series"])


def test_zap_compares_with_the_process_itself(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "zap", "--rounds", 1)
    assert {row["name"] for row in measured["series"]} == {
        "uffdballoon",
        "madvise",
        "process_madvise",
    }
    assert all(row["pages_per_s"] > 0 for row in measured["series"])


def test_refill_compares_with_the_manual(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "refill", "--rounds", 1)
    assert "deflated_vs_manpage:4k" in measured["ratios"]


def test_planner_stays_within_its_budget_and_its_memory(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "planner")
    for row in measured["series"]:
        assert row["most_windows"] <= measured["budget"]
        assert row["armed_bytes"] >= row["needed_bytes"]
    (large,) = [row for row in measured["series"] if row["name"].startswith("1 TiB, 10,000,000")]
    assert large["total_bytes"] <= 96 << 20


def test_json_may_go_to_standard_output_and_bad_input_is_refused(tmp_path: Path) -> None:
    done = run("bench", "zap", "--rounds", 1, "--json", "-")
    assert json.loads(done.stdout)["series"]
    refused(2, "bench", "refill", "--json", tmp_path / "no" / "such" / "place")


@pytest.mark.parametrize("backing", ["anon", "thp", "memfd"])
def test_the_toucher_records_every_touch_of_every_thread(backing: str) -> None:
    with Toucher(backing, 4 << 20, 2) as toucher:
        toucher.fill()
        toucher.zap()
        assert toucher.touch(Access.WRITE, 4096, 512) > 0
        assert len(toucher.records(512)) == 1024
        assert min(toucher.records(512)) > 0
