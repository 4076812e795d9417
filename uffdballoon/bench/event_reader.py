# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow a manager's events from a process of its own, and count what comes.

As a process it reads as fast as `uffdballoon events --follow` does, whatever who measures is
busy with.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.daemon import client
from uffdballoon.errors import LabError
from uffdballoon.model.records.events import EventKind, TouchEvent

if TYPE_CHECKING:
    from types import TracebackType


class EventReader:
    """Counts touches until so many were read, or told to be missing; a context manager."""

    def __init__(self, pid: int, touches: int) -> None:
        """Begin to follow the manager of process ``pid``; of its events there has to be one."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uffdballoon.bench.event_reader", str(pid), str(touches)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self._line()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self) -> dict[str, int]:
        """Wait until all are accounted for; return ``read`` and ``missed``."""
        counts: dict[str, int] = self._line()
        return counts

    def _line(self) -> Any:  # noqa: ANN401 - it is JSON
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("nobody follows the manager any more", why="the reader has ended")
        return json.loads(line)


def _main(pid: int, touches: int) -> None:
    read = missed = 0
    for event in itertools.chain.from_iterable(client.follow(pid)):
        if not read + missed:
            print("true", flush=True)  # noqa: T201 - to who started us
        if isinstance(event, TouchEvent):
            read += 1
        elif event.kind is EventKind.MISSED:
            assert isinstance(event.count, int)
            missed += event.count
        if read + missed >= touches:
            break
    print(json.dumps({"read": read, "missed": missed}), flush=True)  # noqa: T201


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
