# SPDX-License-Identifier: GPL-2.0-or-later
"""A manager in a forked child, which tells in which phase of its life it is.

It is the command itself, `uffdballoon attach`, without the start of an interpreter; a byte
goes over a pipe where a phase begins.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from typing import TYPE_CHECKING, Any, Self

import uffdballoon.cli.attach  # noqa: F401 - once, and not in every child
from uffdballoon.balloon import enforcer
from uffdballoon.cli.main import main
from uffdballoon.core.fault_loop import FaultLoop
from uffdballoon.daemon import manager as daemon_manager
from uffdballoon.daemon.protocol import VERSION, encode
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.model.granule import Granule
from uffdballoon.session import Session, obtaining

if TYPE_CHECKING:
    from pathlib import Path

    from uffdballoon.model.addresses import GpaRange

_PATIENCE_S = 30.0


class Phase(enum.IntEnum):
    """What a manager announces when it begins."""

    ATTACH = 1
    INJECT = 2
    SERVE = 3
    ARM = 4
    ZAP = 5
    DETACH = 6


def _announce(fd: int, owner: object, name: str, phase: Phase) -> None:
    real = getattr(owner, name)

    def announced(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as it is called
        os.write(fd, bytes([phase]))
        return real(*arguments, **named)

    setattr(owner, name, announced)


def _live(fd: int, arguments: list[str]) -> None:
    for owner, name, phase in (
        (Session, "__init__", Phase.ATTACH),
        (obtaining, "obtain_userfaultfd", Phase.INJECT),
        (daemon_manager.Manager, "run", Phase.SERVE),
        (FaultLoop, "inflate", Phase.ARM),
        (enforcer, "zap_private", Phase.ZAP),
        (Session, "close", Phase.DETACH),
    ):
        _announce(fd, owner, name, phase)
    sys.argv = ["uffdballoon", "attach", *arguments]
    main()


class ForkedManager:
    """A running `uffdballoon attach PID ...`; a context manager that ends it."""

    def __init__(self, pid: int, *arguments: object) -> None:
        self.target_pid = pid
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._phases, told = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._be_the_child(told, [str(pid), *map(str, arguments)])
        os.close(told)
        self._pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def _be_the_child(self, told: int, arguments: list[str]) -> None:
        code = 70
        try:
            for number in (1, 2):
                os.dup2(self._said.fileno(), number)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            _live(told, arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - it is told, and the child ends here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.wait()
        os.close(self._pidfd)
        os.close(self._phases)
        self._said.close()
        if not _has_listener(socket_path(self.target_pid)):
            socket_path(self.target_pid).unlink(missing_ok=True)  # a killed manager cannot

    def signal(self, number: signal.Signals) -> None:
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def reach(self, phase: Phase) -> bool:
        """Wait until it begins a phase; False when it ended before."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            left_s = max(deadline - time.monotonic(), 0)
            assert select.select([self._phases], [], [], left_s)[0], f"no {phase}: {self.said}"
            byte = os.read(self._phases, 1)
            if not byte:
                return False
            if byte[0] == phase:
                return True

    def ask(self, verb: str, **arguments: object) -> socket.socket:
        """Send a request without waiting for its answer."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(socket_path(self.target_pid)))
        connection.sendall(encode({"v": VERSION, "verb": verb, **arguments}))
        return connection

    def ask_to_inflate(self, span: GpaRange, granule: Granule = Granule.SMALL) -> socket.socket:
        where = {"gpa": span.start, "size": span.size_bytes, "granule": granule.value}
        return self.ask("inflate", guest_agreed=True, **where)

    def inflate(self, span: GpaRange, granule: Granule = Granule.SMALL) -> None:
        with self.ask_to_inflate(span, granule) as connection, connection.makefile("rb") as lines:
            answer = lines.readline()
        assert b'"ok":true' in answer, answer

    def deflate(self, span: GpaRange, granule: Granule = Granule.SMALL) -> None:
        where = {"gpa": span.start, "size": span.size_bytes, "granule": granule.value}
        with self.ask("deflate", **where) as connection, connection.makefile("rb") as lines:
            answer = lines.readline()
        assert b'"ok":true' in answer, answer

    def wait(self) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        if self.status is None:
            assert select.select([self._pidfd], [], [], _PATIENCE_S)[0], f"no end: {self.said}"
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    @property
    def said(self) -> str:
        """What it wrote to its standard output and error."""
        size = os.fstat(self._said.fileno()).st_size
        return os.pread(self._said.fileno(), size, 0).decode(errors="replace")


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
