# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from uffdballoon.scenarios.catalogue import SCENARIOS

if TYPE_CHECKING:
    from uffdballoon.lab.qemu import Accel

pytestmark = REAL_QEMU


def _scenario(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "uffdballoon", "scenario", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


_MARKS = {
    "hugetlbfs-2m": pytest.mark.takes_huge_pages,
    "hugetlbfs-balloon": pytest.mark.takes_huge_pages,
    "limit-by-reporting-hugetlbfs": pytest.mark.takes_huge_pages,
    "khugepaged-reinflation": pytest.mark.alone,
    "keep-guest-performance": pytest.mark.alone,
    "thp-fragmentation-limit": pytest.mark.alone,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(s.name, marks=_MARKS.get(s.name, ())) for s in SCENARIOS if s.accel is None],
)
def test_a_scenario_passes(name: str, accel: Accel) -> None:
    _check_that_it_passes(name, "--accel", accel.value, "--quick")


@pytest.mark.needs_linux_guest
@pytest.mark.parametrize(
    "name",
    [pytest.param(s.name, marks=_MARKS.get(s.name, ())) for s in SCENARIOS if s.accel is not None],
)
def test_a_scenario_of_a_linux_guest_passes(name: str) -> None:
    _check_that_it_passes(name, "--quick")


@pytest.mark.campaign
@pytest.mark.needs_linux_guest
@pytest.mark.parametrize("name", [s.name for s in SCENARIOS])
def test_a_scenario_passes_at_its_full_length(name: str) -> None:
    _check_that_it_passes(name)


def _check_that_it_passes(name: str, *arguments: str) -> None:
    done = _scenario("run", name, *arguments)
    assert done.stdout.splitlines()[-1] == f"PASS {name}", done.stdout + done.stderr
    assert done.returncode == 0


def test_scenarios_are_listed_in_the_shape_that_scripts_rely_on() -> None:
    listed = json.loads(_scenario("list", "--json").stdout)
    assert [entry["name"] for entry in listed] == [scenario.name for scenario in SCENARIOS]
    assert all(set(entry) == {"name", "summary", "needs"} for entry in listed)


def test_the_example_of_a_scenario_runs() -> None:
    command = [sys.executable, "-m", "examples.own_scenario"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_scenario_that_is_not_there_is_a_usage_error() -> None:
    done = _scenario("run", "no-such-thing")
    assert done.returncode == 2
    assert "there is no scenario" in done.stderr
