# SPDX-License-Identifier: GPL-2.0-or-later
"""Markers that ask the host, who runs beside whom, and the check that a run leaves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.leftovers import HostState
from tests.support.prerequisites import PREREQUISITES, demand
from tests.support.side_by_side import Host, assign_workers, is_alone
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.left_behind import tell_left_behind

if TYPE_CHECKING:
    from collections.abc import Generator

# A deadline asserts a time, which a busy machine does not keep.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")

_THE_HOST = Host()
_BEFORE = pytest.StashKey[HostState]()
_LEFT_BEHIND = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Put right what a killed run has left, and look at the host, before there are workers."""
    if _is_worker(session.config) or session.config.option.collectonly:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    put_right = [f"put right: {line}" for line in HOST.put_right()]
    for line in [*put_right, *(f"left by a killed run: {line}" for line in tell_left_behind())]:
        if reporter is not None:
            reporter.write_line(line)
    session.config.stash[_BEFORE] = HostState()


@pytest.hookimpl(tryfirst=True)  # before xdist asks for the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave campaigns out unless they are asked for by ``-m campaign``."""
    if "campaign" not in config.getoption("markexpr"):
        left_out = [item for item in items if item.get_closest_marker("campaign")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
    assign_workers(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    then_alone = nextitem is not None and is_alone(nextitem)
    with _THE_HOST.had(alone=is_alone(item), then_alone=then_alone):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for what the test's markers need before any fixture is made."""
    for marker in item.iter_markers():
        if marker.name in PREREQUISITES:
            demand(marker.name)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a process, a hugepage, a tuning or a mount outlives it."""
    if _is_worker(session.config):
        return
    before = session.config.stash.get(_BEFORE, None)
    session.config.stash[_LEFT_BEHIND] = before.differences() if before else []
    if session.config.stash[_LEFT_BEHIND]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Count what is left behind as an error of the run."""
    for what in config.stash.get(_LEFT_BEHIND, []):
        terminalreporter.section("left behind by this run", red=True, bold=True)
        terminalreporter.line(what)
        error = pytest.TestReport(
            nodeid="tests",
            location=("tests", None, "what a run leaves behind"),
            keywords={},
            outcome="failed",
            longrepr=what,
            when="teardown",
        )
        terminalreporter.stats.setdefault("error", []).append(error)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
