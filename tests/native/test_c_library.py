# SPDX-License-Identifier: GPL-2.0-or-later
"""The C library's own tests, as `make test-native` has built them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from uffdballoon.lab.hugepages import HugePagePool

_BUILD = Path(__file__).parents[2] / "build" / "native"
_SKIPPED = 77  # native/tests/CMakeLists.txt
_PATIENCE_S = 300
_POOL_PAGES = 8  # two times SIZE of native/tests/engine_setup.h


def _commands() -> dict[str, list[str]]:
    """Return the command of each test by its name; nothing where they are not built."""
    if not (_BUILD / "CTestTestfile.cmake").exists():
        return {}
    shown = subprocess.run(
        ["ctest", "--test-dir", str(_BUILD), "--show-only=json-v1"],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return {test["name"]: test["command"] for test in json.loads(shown)["tests"]}


_COMMANDS = _commands()


def test_they_are_built() -> None:
    if not _COMMANDS and os.environ.get("UFFDBALLOON_REQUIRE") != "1":
        pytest.skip("not built: make build-native")
    assert _COMMANDS


@pytest.mark.parametrize("name", _COMMANDS)
def test_it_passes(name: str) -> None:
    _run(name)


@pytest.mark.needs_root
@pytest.mark.needs_userfaultfd
@pytest.mark.takes_huge_pages
@pytest.mark.skipif("drop" not in _COMMANDS, reason="not built: make build-native")
def test_what_drops_zeros_passes_with_huge_pages() -> None:
    with HugePagePool(_POOL_PAGES):
        _run("drop", "on-huge-pages")


@pytest.mark.needs_root
@pytest.mark.needs_userfaultfd
@pytest.mark.takes_huge_pages
@pytest.mark.skipif("gather" not in _COMMANDS, reason="not built: make build-native")
def test_what_gathers_pieces_passes_with_huge_pages() -> None:
    with HugePagePool(_POOL_PAGES):
        _run("gather", "on-huge-pages")


def _run(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [*_COMMANDS[name], *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE_S,
    )
    if done.returncode == _SKIPPED and os.environ.get("UFFDBALLOON_REQUIRE") != "1":
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout
