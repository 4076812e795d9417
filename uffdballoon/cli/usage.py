# SPDX-License-Identifier: GPL-2.0-or-later
"""What click refuses, in the words of our own errors: what, why, what to do."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import click

from uffdballoon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable


def in_our_words(error: click.ClickException) -> UsageError:
    """Say it as our errors do."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "uffdballoon"
    see = f"see {command} --help"
    match error:
        case click.NoSuchOption():
            near = " or ".join(error.possibilities or ())
            return UsageError(
                f"there is no option {error.option_name}",
                why=f"{command} does not know it",
                hint=f"did you mean {near}? {see}"
                if near
                else f"{see}; what begins with - and is no option goes behind --",
            )
        case click.MissingParameter():
            return UsageError(
                f"{_name_of(error.param)} is missing",
                why=f"{command} does not go without",
                hint=see,
            )
        case click.BadParameter():
            return UsageError(
                f"{_name_of(error.param)} is not understood",
                why=_plain(error.message),
                hint=see,
            )
        case _:
            return UsageError(_plain(error.format_message()), why=_usage_of(context), hint=see)


def no_such_verb(name: str, verbs: Iterable[str]) -> UsageError:
    """Refuse a verb that there is not, and name those that are like it."""
    near = " or ".join(difflib.get_close_matches(name, list(verbs)))
    return UsageError(
        f"there is no command {name}",
        why="uffdballoon does not know it",
        hint=f"did you mean {near}? see uffdballoon --help" if near else "see uffdballoon --help",
    )


def with_context(error: click.UsageError, parent: click.Context, verbs: click.Group) -> None:
    """Say which verb refused it: of an option without its value click does not."""
    name = parent.invoked_subcommand
    command = verbs.get_command(parent, name) if error.ctx is None and name else None
    if command is not None:
        error.ctx = click.Context(command, info_name=name, parent=parent)


def _usage_of(context: click.Context | None) -> str:
    """Say how the command is called, or what a group consists of."""
    if context is None:
        return "uffdballoon does not know what is meant"
    if isinstance(context.command, click.Group) and context.parent is not None:
        return f"{context.command_path} has {', '.join(context.command.list_commands(context))}"
    return f"the command is {' '.join(context.get_usage().removeprefix('Usage: ').split())}"


def _name_of(parameter: click.Parameter | None) -> str:
    """Name it as the usage line does."""
    match parameter:
        case click.Option():
            return max(parameter.opts, key=len)
        case click.Argument():
            return parameter.human_readable_name.upper()
        case _:
            return "a value"


def _plain(message: str) -> str:
    """Make a sentence of click's one of ours: lower case, no full stop."""
    text = message.strip().removesuffix(".")
    return text[:1].lower() + text[1:]
