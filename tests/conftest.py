# SPDX-License-Identifier: GPL-2.0-or-later
"""Markers that ask the host, and the check that a run leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.leftovers import HostState
from tests.support.prerequisites import PREREQUISITES, demand
from uffdballoon.lab.host_state import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_sessionstart(session: pytest.Session) -> None:
    """Put right what a killed run has left, before it is taken for the host's own."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for line in HOST.put_right():
        if reporter is not None:
            reporter.write_line(f"put right: {line}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave campaigns out unless they are asked for by ``-m campaign``."""
    if "campaign" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("campaign")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for what the test's markers need before any fixture is made."""
    for marker in item.iter_markers():
        if marker.name in PREREQUISITES:
            demand(marker.name)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fail the run when a process, a hugepage, a tuning or a mount outlives it."""
    before = HostState()
    yield
    assert before.differences() == []
