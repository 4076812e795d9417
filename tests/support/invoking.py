# SPDX-License-Identifier: GPL-2.0-or-later
"""Many command lines, each in a child of a process that has all of the command imported.

Run as a program it reads a JSON list of command lines, and prints a JSON list of what came of
them: that is the command from main() to its exit, without an interpreter's start for each.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, NoReturn

from uffdballoon.bench.drawing import pyplot_or_refuse
from uffdballoon.cli import main
from uffdballoon.errors import UffdballoonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_HUNG_S = 20.0  # none has needed a third of it
_WHOLE_S = 280.0
_HERE = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """How one ended, and what it said; ``code`` is below 0 where a signal ended it."""

    code: int
    stdout: str
    stderr: str


def invoke_all(lines: Iterable[Sequence[str]], *, together: int) -> list[Outcome]:
    """Run the command by each line of arguments, ``together`` at a time; return what came of it."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(together)],
        input=json.dumps([list(line) for line in lines]),
        capture_output=True,
        text=True,
        check=True,
        cwd=_HERE,
        timeout=_WHOLE_S,
    )
    return [Outcome(*told) for told in json.loads(done.stdout)]


class _Child:
    """One that runs; it ends by itself, or is told to when it hangs."""

    def __init__(self, arguments: list[str]) -> None:
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - wait() closes
        self._pid = os.fork()
        if not self._pid:
            _become(arguments, self._files)
        self._pidfd = os.pidfd_open(self._pid)

    def wait(self) -> Outcome:
        for number in (signal.SIGTERM, signal.SIGKILL):  # an attach lets go at the first
            if select.select([self._pidfd], [], [], _HUNG_S)[0]:
                break
            signal.pidfd_send_signal(self._pidfd, number)
        status = os.waitpid(self._pid, 0)[1]
        os.close(self._pidfd)
        return Outcome(os.waitstatus_to_exitcode(status), *map(_read, self._files))


def _read(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="backslashreplace")


def _become(arguments: list[str], files: list[IO[bytes]]) -> NoReturn:
    """Be the command, in a child; never return."""
    code = 70
    try:
        for fd, file in enumerate(files, start=1):
            os.dup2(file.fileno(), fd)
        sys.argv = ["uffdballoon", *arguments]
        main.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _outcomes(lines: list[list[str]], together: int) -> Iterator[Outcome]:
    running: list[_Child] = []
    for line in lines:
        if len(running) == together:
            yield running.pop(0).wait()
        running.append(_Child(line))
    for child in running:
        yield child.wait()


def _main() -> None:
    for room in ("cli", "bench"):
        for module in sorted((_HERE / "uffdballoon" / room).glob("[a-z]*.py")):
            importlib.import_module(f"uffdballoon.{room}.{module.stem}")
    with contextlib.suppress(UffdballoonError):
        pyplot_or_refuse()
    lines = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    print(json.dumps(list(_outcomes(lines, int(sys.argv[1])))))  # noqa: T201 - its only output


if __name__ == "__main__":
    _main()
