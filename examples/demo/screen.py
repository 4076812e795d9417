# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demo shows: colours and a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


class Screen:
    """Print steps and claims, and remember the claims that did not hold."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self.failures: list[str] = []

    def say(self, text: str) -> None:
        self._console.print(text, style="bold", markup=False)

    def step(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold cyan", markup=False)

    def show(self, text: str) -> None:
        self._console.print(f"      {text}", style="dim", markup=False)

    def claim(self, text: str, *, holds: bool) -> None:
        """Print what was found, and whether it is as the demo says it is."""
        mark, style = ("ok  ", "green") if holds else ("FAIL", "bold red")
        self._console.print(f"{mark}  {text}", style=style, markup=False)
        if not holds:
            self.failures.append(text)

    def track(self, label: str, items: Sequence[T]) -> Iterator[T]:
        """Yield ``items`` under a progress bar that goes away when they are done."""
        columns = TextColumn("      {task.description}"), BarColumn(), TaskProgressColumn()
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            yield from progress.track(items, description=label)
