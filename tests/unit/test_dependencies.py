# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools.dependencies import is_same_version, lowest_version

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("requirement", "lowest"),
    [
        ("rich>=13", ("rich", "13")),
        ("qemu.qmp >= 0.0.3", ("qemu.qmp", "0.0.3")),
        ("python-ptrace>=0.9.9,<2", ("python-ptrace", "0.9.9")),
    ],
)
def test_the_lowest_version_is_that_of_the_range(requirement: str, lowest: tuple[str, str]) -> None:
    assert lowest_version(requirement) == lowest


@pytest.mark.parametrize(
    "requirement", ["rich", "rich==13", "rich>13", "rich<14,>=13", "rich>=13; python_version>'3'"]
)
def test_a_requirement_without_a_plain_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="NAME>=VERSION"):
        lowest_version(requirement)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("13", "13.0.0", True),
        ("2.1", "2.1", True),
        ("2.1", "2.1.1", False),
        ("8.10", "8.1", False),
        ("8", "80", False),
    ],
)
def test_zeros_at_the_end_make_no_other_version(one: str, other: str, *, same: bool) -> None:
    assert is_same_version(one, other) is same


def test_lowest_versions_are_known_of_what_runs_builds_and_draws() -> None:
    for option in ((), ("--build",)):
        done = subprocess.run(
            [sys.executable, _ROOT / "tools" / "dependencies.py", "--lowest", *option],
            capture_output=True,
            text=True,
            check=True,
        )
        names = {line.partition("==")[0] for line in done.stdout.splitlines()}
        assert names >= ({"scikit-build-core", "cffi"} if option else {"click", "matplotlib"})


def test_everything_that_pyproject_names_is_pinned() -> None:
    pyproject = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = pyproject["dependency-groups"]
    named = {_canonical(text) for text in groups["dev"] + groups["fuzz"] + groups["libvirt"]}
    named |= {_canonical(text) for text in pyproject["project"]["dependencies"]}
    pins = (_ROOT / "tools" / "pins.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_canonical(line) for line in pins if "==" in line}
    assert named | {"pip"} <= pinned, "`make pins` pins what is new"


def _canonical(requirement: str) -> str:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()
