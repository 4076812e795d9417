# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of a click program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


def walk(command: click.Command, name: str) -> Iterator[click.Context]:
    """Yield the context of a command, and those of all below it."""
    yield from _walk(command, name, None)


def below(context: click.Context) -> list[click.Context]:
    """Return the contexts of the commands of a group, in its order."""
    group = context.command
    if not isinstance(group, click.Group):
        return []
    found = []
    for verb in group.list_commands(context):
        command = group.get_command(context, verb)
        assert command is not None
        found.append(_context(command, verb, context))
    return found


def _walk(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[click.Context]:
    context = _context(command, name, parent)
    yield context
    for child in below(context):
        yield from _walk(child.command, child.info_name or "", context)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """Make it as click does before it parses a line: of a parent it has the settings."""
    return click.Context(command, parent=parent, info_name=name, **command.context_settings)
