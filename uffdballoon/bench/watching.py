# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch a QEMU from a process of its own while something is done to it.

As a process nothing of it waits for the interpreter that measures. ``qmp`` times round trips of
the monitor; ``traced`` looks who traces each thread, by /proc alone.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from uffdballoon.errors import LabError
from uffdballoon.lab.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE_S = 0.0002  # less than any stop; without it a CPU is lost to those who are watched


class Watcher:
    """A running watcher; a context manager that ends it. It ends with us, too."""

    def __init__(self, what: str, subject: str) -> None:
        """Start to watch; ``what`` is qmp, of the socket at ``subject``, or traced, of a pid."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uffdballoon.bench.watching", what, subject],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def during(self, work: Callable[[], object]) -> Any:  # noqa: ANN401 - it is JSON
        """Watch for as long as ``work`` takes; return what was seen."""
        self._say("begin")
        self._answer()
        work()
        self._say("end")
        return self._answer()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")

    def _answer(self) -> Any:  # noqa: ANN401 - it is JSON
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("nobody watches QEMU any more", why="the watching process has ended")
        return json.loads(line)


def _round_trips(path: str) -> Callable[[Callable[[], bool]], list[int]]:
    """Return what times round trips in ns until it is told to end."""
    monitor = Monitor(Path(path))

    def watch(is_over: Callable[[], bool]) -> list[int]:
        taken = []
        while not is_over():
            began_ns = time.monotonic_ns()
            monitor.execute("query-status")
            taken.append(time.monotonic_ns() - began_ns)
        return taken

    return watch


def _traced_threads(pid: str) -> Callable[[Callable[[], bool]], dict[str, Any]]:
    """Return what counts how often each thread was seen with a tracer, and how often it looked."""
    tasks = Path(f"/proc/{pid}/task")

    def watch(is_over: Callable[[], bool]) -> dict[str, Any]:
        looks, traced = 0, dict[str, int]()
        while not is_over():
            looks += 1
            for task in tasks.iterdir():
                try:
                    status = (task / "status").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue  # a worker that has ended
                if b"\nTracerPid:\t0\n" not in status:
                    traced[task.name] = traced.get(task.name, 0) + 1
            time.sleep(_PAUSE_S)
        return {"looks": looks, "traced": traced}

    return watch


def _main(what: str, subject: str) -> None:
    watch = {"qmp": _round_trips, "traced": _traced_threads}[what](subject)

    def is_over() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    print("true", flush=True)  # noqa: T201 - to who started us
    while sys.stdin.readline():
        print("true", flush=True)  # noqa: T201
        seen = watch(is_over)
        sys.stdin.readline()
        print(json.dumps(seen), flush=True)  # noqa: T201


if __name__ == "__main__":
    _main(*sys.argv[1:])
