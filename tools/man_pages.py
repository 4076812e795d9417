# SPDX-License-Identifier: GPL-2.0-or-later
"""Manual pages of a click program, one for each command, as roff (man(7)).

click-man, the one library for that, sets a date of its own, leaves the epilog out, and lets a line
that begins with a period be taken for a request.
"""

from __future__ import annotations

import inspect
import re

import click

from tools.commands import below, walk

_EXAMPLE = "Example: "
_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "^": r"\(ha", "~": r"\(ti"}


def man_pages(program: click.Group, name: str, version: str) -> dict[str, str]:
    """Return the text of each page by its file name, such as ``uffdballoon-attach.1``."""
    status = (program.epilog or "").removeprefix("Exit codes: ")
    return {
        f"{_title(context)}.1": _page(context, f"{name} {version}", status)
        for context in walk(program, name)
    }


def _page(context: click.Context, version: str, exit_status: str) -> str:
    command, title = context.command, _title(context)
    summary, *paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    examples = [text for text in paragraphs if text.startswith(_EXAMPLE)]
    told = [text for text in paragraphs if text not in examples]
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        r".\" SPDX-License-Identifier: GPL-2.0-or-later",
        r".\" Made by `make share` from what `--help` prints. Do not edit.",
        f'.TH {_escaped(title.upper())} 1 "" "{_escaped(version)}" "User Commands"',
        ".SH NAME",
        rf"{_escaped(title)} \- {_text(summary.rstrip('.'))}",
        ".SH SYNOPSIS",
        f"{_bold(context.command_path)} {_escaped(usage)}",
        ".SH DESCRIPTION",
        *_paragraphs([summary, *told]),
    ]
    children = below(context)
    if children:
        lines.append(".SH COMMANDS")
    for child in children:
        lines += [".TP", _reference(child), _text(child.command.get_short_help_str(limit=1000))]
    lines += [".SH OPTIONS", *_options(command, context)]
    if examples:
        lines += [".SH EXAMPLES", *_paragraphs([_example(text) for text in examples])]
    lines += [".SH EXIT STATUS", _text(exit_status)]
    if context.parent:
        lines += [".SH SEE ALSO", _reference(context.parent)]
    return "\n".join(lines) + "\n"


def _options(command: click.Command, context: click.Context) -> list[str]:
    lines = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            switches, told = record
            lines += [".TP", _switches(switches), _text(told) or r"\&"]
    return lines


def _switches(text: str) -> str:
    """Set switches bold, and what stands for their values in italics."""
    return " ".join(
        _bold(word.rstrip(",")) + "," * word.endswith(",")
        if word.startswith("-")
        else rf"\fI{_escaped(word)}\fR"
        for word in text.split(" ")
    )


def _paragraphs(texts: list[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        lines += [".PP", _text(text)]
    return lines[1:]  # the first follows its heading


def _example(text: str) -> str:
    """Return the command of an example, as code."""
    commands = " ".join(text.split()).removeprefix(_EXAMPLE).split(", and then ")
    return ", and then ".join(f"`{command}`" for command in commands)


def _reference(context: click.Context) -> str:
    return rf"{_bold(_title(context))}(1)"


def _title(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _bold(text: str) -> str:
    return rf"\fB{_escaped(text)}\fR"


def _text(text: str) -> str:
    """Make prose, in which `code` is bold, one line that is taken for no request."""
    parts = re.split(r"`([^`]*)`", " ".join(text.split()))
    line = "".join(_bold(part) if place % 2 else _escaped(part) for place, part in enumerate(parts))
    return rf"\&{line}" if line.startswith(".") else line


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)
