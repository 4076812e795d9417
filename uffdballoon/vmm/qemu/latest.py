# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions that must not wait for QEMU: what it said last counts where it says nothing now."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu.lines import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.model.job import Job
    from uffdballoon.vmm.qemu.qmp import Commands, Pending

T = TypeVar("T")

_PATIENCE_S = 1.0  # QEMU answers in less than 1 ms, and on a busy host in 0.3 s
_LOOKS_S = 0.002
_QUESTIONS = ("query-", "qom-get", "human-monitor-command")


class LatestAnswers:
    """A monitor's answers, in little time.

    A question that QEMU answers at once has that answer. QEMU answers in order: while an older
    question waits nobody waits for another one, so that a QEMU that is stuck is waited for once.
    Who has turns to take asks ahead, and waits for nothing.
    """

    def __init__(self, monitor: Commands) -> None:
        self._monitor = monitor
        self._waits_s: float | None = None
        self._asks = True
        self._asked: dict[str, Pending] = {}
        self._answers: dict[str, Any] = {}

    def are_late(self) -> bool:
        """Tell whether QEMU was asked something that it has not answered; read what is there."""
        return any(not pending.wait(0.0) for pending in self._asked.values())

    @contextlib.contextmanager
    def patient(self, patience_s: float) -> Iterator[None]:
        """Wait so long for each answer in the context, whatever waits already."""
        before, self._waits_s = self._waits_s, patience_s
        try:
            yield
        finally:
            self._waits_s = before

    def ahead(self, look: Callable[[], object]) -> Job[bool]:
        """Ask what ``look`` asks, and give QEMU a second, a turn at a time.

        Returns whether all is answered; told() has the answers then.
        """
        with self.patient(0.0), contextlib.suppress(QmpError):
            look()
        deadline = time.monotonic() + _PATIENCE_S
        while self.are_late():
            if time.monotonic() > deadline:
                return False
            yield _LOOKS_S
        return True

    def glance(self, look: Callable[[], T]) -> T:
        """Return what ``look`` makes of the last answers, and ask anew for the next time."""
        with self.told():
            found = look()
        with self.patient(0.0), contextlib.suppress(QmpError):
            look()
        return found

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Ask nothing in the context: what was answered last is the answer."""
        self._asks = False
        try:
            with self.patient(0.0):
                yield
        finally:
            self._asks = True

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401
        """Return the answer, or the last one to the same question; raise QmpError.

        It is raised for a refusal, for a question that was never answered, and for a change that
        is not answered yet: it was sent, and may be done later.
        """
        if not command.startswith(_QUESTIONS):
            return self._monitor.execute(command, arguments, timeout_s=self._patience())
        question = f"{command} {arguments}"
        patience_s = self._patience()
        asked = self._asked.get(question)
        if self._asks and (asked is None or asked.is_over):
            asked = self._asked[question] = self._monitor.submit(command, arguments)
        if asked is not None:
            asked.wait(patience_s)
            if asked.is_over:
                del self._asked[question]
                self._answers.pop(question, None)
                self._answers[question] = asked.result()
        if question not in self._answers:
            raise refused(command, "no answer yet", "QEMU is busy or stopped: try again")
        return self._answers[question]

    def hmp(self, line: str) -> str:
        text = self.execute("human-monitor-command", {"command-line": line})
        return str(text).replace("\r\n", "\n")

    def _patience(self) -> float:
        if self._waits_s is not None:
            return self._waits_s
        return 0.0 if self.are_late() else _PATIENCE_S
