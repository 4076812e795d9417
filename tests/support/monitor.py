# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor that answers what a test has written down."""

from __future__ import annotations

from typing import Any

from uffdballoon.errors import QmpError


class WrittenMonitor:
    """``answers`` are by command, or by "command path" or "command path property" for QOM.

    One that is an exception is raised, one that is a function is called with the arguments.
    What has none is refused, as QEMU refuses a command that it does not know.
    """

    def __init__(self, answers: dict[str, Any], **more: Any) -> None:  # noqa: ANN401 - any JSON
        self.answers = {**answers, **{name.replace("_", "-"): told for name, told in more.items()}}
        self.asked: list[tuple[str, dict[str, object]]] = []

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401
        given = arguments or {}
        self.asked.append((command, given))
        of = [str(given[key]) for key in ("path", "property") if key in given]
        key = " ".join((command, *of))
        answer = self.answers.get(key, self.answers.get(command, QmpError(f"{key}: not known")))
        if isinstance(answer, Exception):
            raise answer
        return answer(given) if callable(answer) else answer

    def hmp(self, line: str) -> str:
        return str(self.execute(line))

    def was_asked(self, command: str) -> list[dict[str, object]]:
        return [arguments for name, arguments in self.asked if name == command]
