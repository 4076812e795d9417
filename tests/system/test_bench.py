# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks run, and say what they measured; no time is asserted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import refused, run
from tests.support.marks import REAL_QEMU
from uffdballoon.lab.toucher import Toucher
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = REAL_QEMU
_LATENCIES = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")


def _bench(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    done = run("bench", *arguments, "--json", result, "--plot", plot)
    assert done.returncode == 0, done.stderr
    drawn = list(tmp_path.glob("plot*.png"))  # one for each backing where there are several
    assert drawn
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in drawn)
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


@pytest.mark.parametrize(
    "backing",
    [
        "anon-4k",
        "anon-thp",
        "memfd-4k",
        pytest.param("hugetlbfs-2m", marks=pytest.mark.takes_huge_pages),
    ],
)
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
    measured = _bench(tmp_path, "zap", "--rounds", 1, "--size", "32M")
    assert measured["size_bytes"] == 32 << 20
    assert {row["name"] for row in measured["series"]} == {
        "uffdballoon",
        "madvise",
        "process_madvise",
    }
    assert all(row["pages_per_s"] > 0 for row in measured["series"])


@pytest.mark.needs_kvm
def test_attach_stops_the_rcu_thread_alone(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "attach", "--rounds", 20, "--size", "64M")
    assert {row["name"] for row in measured["series"]} == {"qemu-kvm", "qemu-tcg"}
    for row in measured["series"]:
        assert row["attaches"] == row["stop_us"]["samples"] == row["obtain_us"]["samples"] == 20
        assert row["main_stops"] == 0
        for seen in (row["seen_attaching"], row["seen_zapping"]):
            traced = seen["traced"]
            assert traced.pop("rcu") > 0, "it was never seen: looking proves nothing"
            assert set(traced) == {"main", "vcpu0"}
            assert set(traced.values()) == {0}
        assert row["zap"]["size_bytes"] == 32 << 20
        assert row["zap"]["stops"] >= row["zap"]["zaps"]
        assert min(trips["samples"] for trips in row["qmp_us"].values()) > 0
    assert len(measured["ratios"]) == 4


def test_refill_compares_with_the_manual(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "refill", "--rounds", 1, "--size", "32M")
    assert measured["size_bytes"] == 32 << 20
    assert measured["ratios"].keys() >= {"deflated_vs_manpage:4k", "cap:reported_vs_manpage:thp"}


def test_planner_stays_within_its_budget_and_its_memory(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "planner")
    for row in measured["series"]:
        assert row["most_windows"] <= measured["budget"]
        assert row["armed_bytes"] >= row["needed_bytes"]
    (large,) = [row for row in measured["series"] if row["name"].startswith("1 TiB, 10,000,000")]
    assert large["total_bytes"] <= 96 << 20


def test_encodings_are_compared_for_guests_of_given_sizes(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "encodings", "--ram", "16G", "--ram", "32G")
    assert {row["ram_bytes"] for row in measured["series"]} == {16 << 30, 32 << 30}
    assert len({row["name"] for row in measured["series"]}) == len(measured["series"]) == 16
    refused(2, "bench", "encodings", "--ram", "1G")


def test_reclaim_compares_with_qemu_alone_and_with_a_cgroup(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "reclaim", "--size", "64M")
    alone, ours = measured["without_reclaimer"], measured["with_reclaimer"]
    assert alone["ballooned_bytes"] == ours["ballooned_bytes"] == 32 << 20
    assert ours["status"]["reclaimed_bytes"] == ours["ballooned_bytes"]
    assert alone["bad_lines"] == ours["bad_lines"] == 0
    if ours["measured_by"] == "cgroup":  # MemFree has everybody else's memory in it, too
        assert ours["reclaimed_ratio"] >= 0.95
        assert alone["reclaimed_ratio"] < 0.5
        assert measured["cgroup"]["bad_lines"] == 0


@pytest.mark.alone
def test_khugepaged_fills_nothing_that_is_armed(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "khugepaged", "--size", "32M", "--seconds", 3)
    rows = {row["name"]: row for row in measured["series"]}
    assert measured["eligible_blocks"] == 16
    assert measured["full_scans"] >= 2
    assert rows["with_guard"]["grew_bytes"] == measured["ballooned_resident_bytes"] == 0
    assert rows["without_guard"]["grew_bytes"] > 0
    assert all(row["bad_lines"] == 0 for row in rows.values())


def test_pieces_of_2_mib_split_no_huge_page_of_what_the_guest_keeps(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "guest", "--size", "32M", "--rounds", 1)
    rows = {row["name"]: row for row in measured["series"]}
    assert rows["thp"]["huge_bytes_after"] >= rows["thp"]["ballooned_bytes"]
    assert rows["thp"]["split_bytes"] == 0
    assert rows["4k"]["split_bytes"] >= 32 << 20
    for row in rows.values():
        assert row["ballooned_bytes"] == row["reclaimed_bytes"] == 16 << 20
        assert row["violations"] == 0
        assert row["owned_intact"]


def test_a_busy_manager_is_compared_with_itself_at_rest(tmp_path: Path) -> None:
    measured = _bench(
        tmp_path,
        *("manager", "--rounds", 5, "--fragments", 20_000),
        *("--inflate", "8M", "--violations", 3000),
    )
    names = {row["name"] for row in measured["series"]}
    assert names >= {
        "status, empty balloon",
        "status, 20,000 fragments",
        "status, during an inflate",
        "status, a storm of 3,000 violations",
        "violation to pause, nothing else",
        "violation to pause, during an inflate",
    }
    for row in measured["series"]:
        assert row["samples"] > 0
        assert 0 < row["p50_us"] <= row["p99_us"] <= row["max_us"]
        assert row["longest_turn_us"] > 0
    followers = measured["followers"]
    assert sum(followers["reader"].values()) == followers["violations"] == 3000
    assert followers["events_dropped"] == followers["failures"] == 0
    assert "status, during an inflate: max_us vs alone" in measured["ratios"]


def test_json_may_go_to_standard_output_and_bad_input_is_refused(tmp_path: Path) -> None:
    done = run("bench", "refill", "--rounds", 1, "--size", "2M", "--json", "-")
    assert json.loads(done.stdout)["series"]
    refused(2, "bench", "refill", "--size", "1M")
    refused(2, "bench", "zap", "--size", "1M")
    refused(2, "bench", "refill", "--json", tmp_path / "no" / "such" / "place")


@pytest.mark.parametrize("backing", ["anon", "thp", "memfd"])
def test_the_toucher_records_every_touch_of_every_thread(backing: str) -> None:
    with Toucher(backing, 4 << 20, 2) as toucher:
        toucher.fill()
        toucher.zap()
        assert toucher.touch(Access.WRITE, 4096, 512) > 0
        assert len(toucher.records(512)) == 1024
        assert min(toucher.records(512)) > 0


@pytest.mark.needs_linux_guest
def test_balloon_compares_a_followed_guest_with_one_that_nobody_follows(tmp_path: Path) -> None:
    by = ("--observer", "trace", "--observer", "monitor")
    measured = _bench(tmp_path, "balloon", "--rounds", 1, "--size", "64M", *by)
    by_name = {row["name"]: row for row in measured["series"]}
    assert set(by_name) == {"nobody", "trace", "monitor"}
    for name in ("trace", "monitor"):
        row = by_name[name]
        assert row["unaccounted_bytes"] == row["disagreements"] == row["violations"] == 0
        assert row["left_in_ledger_bytes"] == 0
        ratios = {f"{what}: {name} vs nobody" for what in ("inflate", "deflate")}
        assert ratios <= set(measured["ratios"])


@pytest.mark.needs_linux_guest
def test_limit_compares_a_balloon_with_a_cgroup(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "limit", "--size", "384M", "--seconds", 1)
    alone, balloon, cgroup = measured["series"]
    limit_bytes = measured["limit_bytes"]
    assert measured["work_bytes"] > limit_bytes
    assert alone["outcome"] == balloon["outcome"] == "finished"
    assert alone["bad_words"] == balloon["bad_words"] == 0
    assert alone["most_resident_bytes"] > limit_bytes
    assert balloon["samples"] > 0
    assert balloon["most_resident_bytes"] <= limit_bytes + measured["grant_bytes"]
    assert balloon["violations"] == 0
    assert balloon["answers"]
    assert cgroup["outcome"] == "killed" or measured["host_swap_bytes"] > 0
    assert "too little" in refused(2, "bench", "limit", "--size", "64M")


@pytest.mark.needs_linux_guest
def test_steady_compares_an_enforced_guest_with_one_that_is_not(tmp_path: Path) -> None:
    measured = _bench(tmp_path, "steady", "--rounds", 1, "--idle", 1)
    assert measured["violations"] == 0
    assert {row["name"] for row in measured["series"]} == {"not attached", "enforced"}
    assert measured["idle"]["seconds"] == 1
    assert all(ratio > 0 for ratio in measured["ratios"].values())
