# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C, as a terminal sends it to all processes of the command, and users who are not root."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from tests.support.command import Command
from tests.support.marks import REAL_QEMU

pytestmark = REAL_QEMU

_PATIENCE_S = 60.0
_READS = "-all,+dac_read_search"  # the checkout may be where only root comes
_NOBODY = Command(
    (
        *("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"),
        *(f"--{kind}-caps={_READS}" for kind in ("inh", "ambient")),
        *(f"--bounding-set={_READS}", "--"),
    ),
    {"HOME": "/nonexistent"},
)


@pytest.mark.parametrize(
    ("lines", "arguments"),
    [
        (1, ("refill", "--rounds", "1000", "--size", "32M")),
        (2, ("refill", "--rounds", "1000", "--size", "32M")),
        (1, ("fault-latency", "--backing", "anon-4k", "--samples", "1000000", "--guest", "none")),
        (1, ("zap", "--rounds", "1000", "--size", "32M")),
    ],
)
def test_a_benchmark_that_is_interrupted_says_nothing_of_it(
    lines: int, arguments: tuple[str, ...]
) -> None:
    assert _interrupted(arguments, lines) == []


def _interrupted(arguments: tuple[str, ...], lines: int) -> list[str]:
    """Press Ctrl-C once it has said so many lines; return what it says of errors."""
    with subprocess.Popen(
        # Whoever runs the tests in the background ignores it, and so would what they start.
        ["env", "--default-signal=INT", *Command().line("bench", *arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell's job is
        env=Command().surroundings,
    ) as bench:
        assert bench.stderr is not None
        for _ in range(lines):
            bench.stderr.readline()
        os.killpg(bench.pid, signal.SIGINT)
        overdue = threading.Timer(_PATIENCE_S, bench.kill)
        overdue.start()
        said = bench.stderr.read()
        bench.wait()
        overdue.cancel()
    assert bench.returncode == 1
    return [line for line in said.splitlines() if not line.startswith("uffdballoon: ")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "zap", "--rounds", 1, "--size", "4M"),
        ("bench", "refill", "--rounds", 1, "--size", "4M"),
        ("bench", "attach", "--rounds", 1),
        ("scenario", "run", "touch-after-inflate"),
        ("scenario", "run", "honest-guest"),
    ],
    ids=lambda arguments: "-".join(map(str, arguments[:3])),
)
def test_who_is_not_root_is_told_so_at_once(arguments: tuple[object, ...]) -> None:
    done = _NOBODY.run(*arguments)
    assert done.returncode == 3, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("left by")]
    assert [line.partition(":")[0] for line in lines] == ["error", "why", "do"], done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [("bench", "zap", "--help"), ("scenario", "list")])
def test_who_is_not_root_is_told_what_there_is(arguments: tuple[str, ...]) -> None:
    done = _NOBODY.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout
