# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user sees first: the help of every command."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from tools.commands import walk
from uffdballoon.cli.main import cli

_COMMANDS = {context.command_path: context.command for context in walk(cli, "uffdballoon")}
_GROUPS = [name for name, command in _COMMANDS.items() if isinstance(command, click.Group)]


@pytest.mark.parametrize("name", _GROUPS)
def test_no_summary_is_cut_at_80_columns(name: str) -> None:
    shown = CliRunner().invoke(cli, [*name.split()[1:], "--help"], terminal_width=80)
    assert shown.exit_code == 0, shown.output
    commands = shown.output.partition("Commands:")[2].partition("\n\n")[0].splitlines()
    assert [line for line in commands if line.endswith("...")] == []
    assert max(map(len, shown.output.splitlines())) <= 80


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    assert _COMMANDS[name].help


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_json_option_says_what_it_prints(name: str) -> None:
    unexplained = [
        option.name
        for option in _COMMANDS[name].params
        if isinstance(option, click.Option) and "--json" in option.opts and not option.help
    ]
    assert unexplained == []


def test_version_tells_a_line_each_of_what_a_report_needs() -> None:
    shown = CliRunner().invoke(cli, ["--version"])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["uffdballoon", "Linux"]
    assert "Python" in lines[2]
    assert lines[3].startswith("libuffdballoon.so.")
    assert lines[4].startswith("userfaultfd: ")
    assert len(lines) == 5
