# SPDX-License-Identifier: GPL-2.0-or-later
"""What is typed wrongly is refused in three lines, and no guest notices; on real QEMUs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support import wrong_invocations
from tests.support.command import COMMAND, Command, attached, run
from tests.support.invoking import invoke_all
from tests.support.marks import REAL_QEMU
from uffdballoon.host.procfs import read_mappings
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.recording import FORMAT
from uffdballoon.model.records.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.invoking import Outcome
    from tests.support.wrong_invocations import Wrong

pytestmark = [*REAL_QEMU, pytest.mark.xdist_group("wrong-invocations")]

_RAM_BYTES = 160 << 20  # of no other mapping of QEMU's
_OWNED = GpaRange.of(48 << 20, 4 << 20)
_GIVEN_UP = GpaRange.of(64 << 20, 2 << 20)
_LABELS = ["error", "why", "do"]
_TOLD = ("ballooned_bytes", "reclaimed_bytes", "windows", "held", "touches", "ranges")


@dataclass(frozen=True)
class _Guests:
    """A guest that is attached, one that is not, and names of what lies around them."""

    attached: Qemu
    unattached: Qemu
    names: dict[str, str]

    def look(self) -> dict[str, object]:
        """Return all that a wrong invocation must not change."""
        attached, other = self.attached.pid, self.unattached.pid
        status = Command().ask("status", attached, "--ranges")
        return {
            **{key: status[key] for key in _TOLD},
            "policy": Command().ask("policy", attached),
            "RAM": [_ram_of(attached), _ram_of(other)],
            "bytes": [qemu.guest.checksum(_OWNED) for qemu in (self.attached, self.unattached)],
            "files": sorted(str(fd.readlink()) for fd in Path(f"/proc/{other}/fd").iterdir()),
            "tracer": _tracer_of(other),
        }


def _ram_of(pid: int) -> list[str]:
    """Return what is mapped where RAM is: its mappings are the ones that are trapped."""
    mappings = read_mappings(pid)
    return [str(mapping) for mapping in mappings if not mapping.path]


def _tracer_of(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in status.splitlines() if line.startswith("TracerPid:"))


@contextlib.contextmanager
def _listening(path: Path, answer: bytes) -> Iterator[str]:
    """Answer whoever connects with so much, and hang up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield str(path)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _kernel_thread() -> int:
    return next(p.pid for p in psutil.process_iter() if p.ppid() == 2)


def _gone() -> int:
    """Return a pid that nobody has: of a child that has ended."""
    child = psutil.Popen(["true"])
    child.wait()
    return int(child.pid)


def _files_in(directory: Path) -> dict[str, str]:
    contents = {
        "file": b"",
        "words": b"what is this\n",
        "bytes": b"\xff\xfe\x00\x01\n",
        "off": b"0x4000000 1M\n0x4100001 1M\n",
        "empty_json": b"{}",
        "recording": to_json({"format": FORMAT, "ram_bytes": 1 << 30, "runs": [[0, 8]]}).encode(),
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    (directory / "loop").symlink_to(directory / "loop")
    (directory / "full.png").symlink_to("/dev/full")
    return {
        **{name: str(directory / name) for name in (*contents, "loop", "full", "missing")},
        "directory": str(directory),
        "long": str(directory / ("long" * 40)),
        "arabic": "\N{ARABIC-INDIC DIGIT SIX}\N{ARABIC-INDIC DIGIT FOUR}",
    }


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Guests]:
    directory = tmp_path_factory.mktemp("wrong")
    options = QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=_RAM_BYTES), name_threads=True)
    with contextlib.ExitStack() as running:
        enter = running.enter_context
        first, second = (enter(Qemu(options)) for _ in range(2))
        other = psutil.Popen(["sleep", "infinity"])
        running.callback(other.wait)
        running.callback(other.kill)
        for qemu in (first, second):
            qemu.guest.fill(_OWNED, 7)
        enter(attached(first))
        asked = ("--gpa", hex(_GIVEN_UP.start), "--size", _GIVEN_UP.size_bytes)
        done = run("inflate", first.pid, *asked, "--guest-agreed")
        assert done.returncode == 0, done.stderr
        names = {
            **_files_in(directory),
            "attached": str(first.pid),
            "unattached": str(second.pid),
            "own": str(os.getpid()),
            "other": str(other.pid),
            "gone": str(_gone()),
            "kernel": str(_kernel_thread()),
            "shared_name": "lab",
            "monitor": str(second.qmp_path),
            "held_monitor": str(first.qmp_path),
            "chatty": enter(_listening(directory / "chatty", b"hello, who is it?\n")),
            "closing": enter(_listening(directory / "closing", b"")),
        }
        yield _Guests(first, second, names)


@dataclass(frozen=True)
class _Answers:
    """What came of each wrong invocation, by its kind, and the guests before and after all."""

    outcomes: dict[str, list[Outcome]]
    before: dict[str, object]
    after: dict[str, object]


@pytest.fixture(scope="module")
def answers(guests: _Guests) -> _Answers:
    """Try all of them once, those that attach one after the other, beside the rest."""
    lines = {
        kind: [wrong.arguments(guests.names) for wrong in asked]
        for kind, asked in wrong_invocations.ALL.items()
    }
    before = guests.look()
    alone = lines["attaches"]
    together = [line for kind, asked in lines.items() if asked is not alone for line in asked]
    with ThreadPoolExecutor() as pool:
        attaching = pool.submit(invoke_all, alone, together=1)
        others = iter(invoke_all(together, together=3))
        outcomes = {
            kind: attaching.result() if asked is alone else list(islice(others, len(asked)))
            for kind, asked in lines.items()
        }
    return _Answers(outcomes, before, guests.look())


@pytest.mark.parametrize("kind", wrong_invocations.ALL)
def test_it_is_refused_in_three_lines(kind: str, guests: _Guests, answers: _Answers) -> None:
    faults = [
        f"{' '.join(wrong.arguments(guests.names))}: {fault}\n{outcome}"
        for wrong, outcome in zip(wrong_invocations.ALL[kind], answers.outcomes[kind], strict=True)
        if (fault := _fault(wrong, outcome, guests.names))
    ]
    assert not faults, "\n".join(faults)


def test_no_guest_notices_any_of_it(answers: _Answers) -> None:
    assert answers.after == answers.before


def _fault(wrong: Wrong, outcome: Outcome, names: dict[str, str]) -> str:
    """Say what is not as it should be; empty: nothing."""
    said = [line for line in outcome.stderr.splitlines() if not line.startswith("uffdballoon: ")]
    checks: dict[str, Callable[[], bool]] = {
        f"ends with {wrong.code}": lambda: outcome.code == wrong.code,
        "prints nothing": lambda: not outcome.stdout,
        "says what, why and what to do": lambda: (
            [line.partition(": ")[0] for line in said] == _LABELS
        ),
        "has a word for each": lambda: all(line.partition(": ")[2].strip() for line in said),
        "is known": lambda: "error: unexpected: " not in outcome.stderr,
        "can be shown": lambda: all(line.isprintable() for line in said),
        f"says {wrong.says}": lambda: wrong.says.format_map(names) in outcome.stderr,
    }
    return ", ".join(f"not so: {what}" for what, holds in checks.items() if not holds())


def test_there_are_enough_of_them_and_none_twice() -> None:
    lines = [wrong.line for kind in wrong_invocations.ALL.values() for wrong in kind]
    assert len(lines) == len(set(lines)) >= 150


def _surroundings(**values: str | None) -> dict[str, str]:
    """Return our environment with some of it changed, or without it."""
    kept = {name: value for name, value in os.environ.items() if name not in values}
    return kept | {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    "values",
    [
        {"HOME": None},
        {"HOME": "/nonexistent", "PATH": None},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LANG": "xx_YY.nonsense", "LC_ALL": "xx_YY.nonsense"},
        {"XDG_RUNTIME_DIR": "/dev/null"},
        {"XDG_RUNTIME_DIR": "not/absolute\nand two lines"},
        {"XDG_RUNTIME_DIR": "/" + "x" * 300},
        {"NO_COLOR": "1", "TERM": "no-such-terminal"},
        {"COLUMNS": "20", "LINES": "0"},
        {"COLUMNS": "many"},
        {"NOTIFY_SOCKET": "nonsense"},
        {"LISTEN_FDS": "-3", "LISTEN_PID": "x"},
        {"TMPDIR": "/nonexistent", "TZ": "nonsense"},
    ],
    ids=lambda values: " ".join(f"{name}={value!r:.20}" for name, value in values.items()),
)
def test_surroundings_of_any_kind_change_nothing(
    values: dict[str, str | None], guests: _Guests
) -> None:
    for pid, code in ((guests.attached.pid, 0), (guests.unattached.pid, 1)):
        done = subprocess.run(
            [COMMAND, "status", str(pid)],
            capture_output=True,
            check=False,
            env=_surroundings(**values),
        )
        assert done.returncode == code, done.stderr
        labels = [line.partition(b": ")[0].decode() for line in done.stderr.splitlines()]
        assert labels == (_LABELS if code else [])
        assert bool(done.stdout) is not bool(code)


@pytest.mark.parametrize("verb", ["status", "list", "events", "--version"])
def test_an_output_that_is_full_is_told_and_one_that_is_closed_is_not_written_to(
    verb: str, guests: _Guests
) -> None:
    line = [COMMAND, verb]
    line += [] if verb in {"list", "--version"} else [str(guests.attached.pid)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, check=False)
    if verb != "events":  # there are none to be written
        assert done.returncode == 1
        told = [row.partition(b": ")[0].decode() for row in done.stderr.splitlines()]
        assert told == _LABELS, done.stderr
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *line]
    done = subprocess.run(closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
