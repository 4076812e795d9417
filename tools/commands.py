# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of a click program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all below it, each with its words, such as ``uffdballoon bench zap``."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for verb in command.list_commands(context):
            below = command.get_command(context, verb)
            assert below is not None
            yield from walk(below, f"{name} {verb}")
