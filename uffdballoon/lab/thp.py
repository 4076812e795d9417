# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's tunings of huge pages, changed for a while and put back whatever happens."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_BASE = Path("/sys/kernel/mm/transparent_hugepage")

MOST_AGGRESSIVE = {
    "khugepaged/max_ptes_none": "511",
    "khugepaged/pages_to_scan": "1000000",
    "khugepaged/scan_sleep_millisecs": "0",
    "khugepaged/alloc_sleep_millisecs": "0",
    "khugepaged/defrag": "1",
}
"""A block is filled again as soon as one page of it is there, and khugepaged never sleeps."""

# Puts back what it is given, a file and its text at a time, once whoever started it has ended
# in whatever way: its pipe then reads end-of-file.
_GUARDIAN = (
    'trap \'\' INT TERM HUP; read -r _; while [ $# -ge 2 ]; do printf %s "$2" >"$1"; shift 2; done'
)


class ThpTunings:
    """Sets tunings, by their names below transparent_hugepage/, until it is left.

    A process of its own puts them back, so that it happens even when this one is killed.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._guardian: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            before = {name: _read(name) for name in self._values}
            self._guardian = _start_guardian(before)
            for name, value in self._values.items():
                (_BASE / name).write_text(value)
        except OSError as error:
            self._restore()
            raise LabError(
                "the host's huge pages cannot be tuned",
                why=str(error),
                hint="run as root, on a kernel with transparent huge pages",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        """Let the guardian do it, and wait until it has."""
        if self._guardian is not None:
            assert self._guardian.stdin is not None
            self._guardian.stdin.close()
            self._guardian.wait()
            self._guardian = None


def _read(name: str) -> str:
    text = (_BASE / name).read_text().strip()
    chosen = re.search(r"\[(\S+)\]", text)
    return chosen[1] if chosen else text


def _start_guardian(before: Mapping[str, str]) -> subprocess.Popen[bytes]:
    pairs = [word for name, value in before.items() for word in (str(_BASE / name), value)]
    return subprocess.Popen(
        ["sh", "-c", _GUARDIAN, "guardian", *pairs],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # not to be interrupted together with its parent
    )
