# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that checks its own registers and signal mask at every turn."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOURCE = Path(__file__).with_name("victim.c")
_PATIENCE_S = 10.0


def build_victim(directory: Path) -> Path:
    binary = directory / "victim"
    subprocess.run(["gcc", "-O1", "-mavx2", "-o", str(binary), str(_SOURCE)], check=True)
    return binary


class Victim:
    """A running victim; ``mode`` is what it is mostly doing: sleep, poll or spin.

    ``wrapped_by`` is a command that becomes it.
    """

    def __init__(self, binary: Path, mode: str, wrapped_by: Sequence[str] = ()) -> None:
        self._state = binary.with_name(f"state-{mode}")
        self._state.write_bytes(bytes(4096))
        self.process = subprocess.Popen([*wrapped_by, str(binary), str(self._state), mode])
        self.pid = self.process.pid
        self.wait_for_turns(3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def turns(self) -> int:
        return self._word(0)

    def broken(self) -> int:
        """0, or what was not as it had been: 1 integer, 2 vector, 3 signal mask, 4 result."""
        return self._word(1)

    def wait_for_turns(self, more: int = 2) -> None:
        """Wait until it has come round again, checking itself on the way."""
        wanted = self.turns() + more
        deadline = time.monotonic() + _PATIENCE_S
        while self.turns() < wanted:
            assert self.process.poll() is None, "the victim died"
            assert time.monotonic() < deadline, "the victim stands still"
            time.sleep(0.001)

    def resources(self) -> tuple[list[str], list[str], int]:
        """Return its fds, its threads and its number of mappings."""
        proc = Path(f"/proc/{self.pid}")
        return (
            sorted(entry.name for entry in (proc / "fd").iterdir()),
            sorted(entry.name for entry in (proc / "task").iterdir()),
            len((proc / "maps").read_text().splitlines()),
        )

    def _word(self, index: int) -> int:
        data = self._state.read_bytes()
        return int.from_bytes(data[8 * index : 8 * index + 8], "little")
