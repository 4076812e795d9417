# SPDX-License-Identifier: GPL-2.0-or-later
"""What is typed wrongly is told as everything else is: what, why, what to do."""

from __future__ import annotations

import pytest

from tests.support.command import refused, run


@pytest.mark.parametrize(
    ("typed", "what", "do"),
    [
        (("attach",), "PID is missing", "see uffdballoon attach --help"),
        (("attach", "-1"), "there is no option -1", "goes behind --"),
        (("attach", ""), "no VM was named", "uffdballoon list"),
        (("attach", "7", "--flor", "3"), "there is no option --flor", "--floor"),
        (("attach", "7", "8"), "got unexpected extra argument (8)", "attach --help"),
        (("attach", "7", "--qmp"), "--qmp", "see uffdballoon attach --help"),
        (("bench", "zap", "--json"), "--json", "uffdballoon bench"),
        (("attach", "7", "--contract", "x"), "--contract is not understood", "attach --help"),
        (("attach", "7", "--min-order", "99"), "--min-order is not understood", "attach --help"),
        (("atach", "7"), "there is no command atach", "did you mean attach"),
        (("\x1b[31mred",), "there is no command \\x1b[31mred", "--help"),
        (("bench", "no-such"), "no-such", "bench --help"),
    ],
)
def test_it_is_told_in_three_lines(typed: tuple[str, ...], what: str, do: str) -> None:
    lines = refused(2, *typed).splitlines()
    assert what in lines[0]
    assert do in lines[-1]
    assert [line.partition(":")[0] for line in lines] == ["error", "why", "do"]
    assert all(line.isprintable() for line in lines)


def test_a_name_that_nobody_has_is_told_so() -> None:
    assert "no VM is called" in refused(2, "attach", "no VM has this name")
    assert "no VM is called '-1'" in refused(2, "attach", "--", "-1")


@pytest.mark.parametrize("verb", ["attach", "detach", "status", "inflate", "stats"])
def test_the_help_of_a_verb_says_that_it_takes_a_name(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "PID|NAME" in done.stdout


def test_without_a_verb_the_help_is_shown_and_no_error() -> None:
    done = run()
    assert done.returncode in (0, 2)
    assert "error:" not in done.stderr
    assert "attach" in done.stdout + done.stderr
