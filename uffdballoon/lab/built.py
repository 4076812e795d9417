# SPDX-License-Identifier: GPL-2.0-or-later
"""Find what is compiled for a guest, or compile it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from uffdballoon.errors import LabError

_CHECKOUT = Path(__file__).parents[2]


def find_built(file_name: str, directory: str, variable: str, needs: str) -> Path:
    """Find a file that the Makefile in native/``directory`` makes.

    Looks at the environment's ``variable``, at the source checkout, where it is built anew when
    it is out of date, at the installed package. Raises LabError when there is none; ``needs``
    says what building it takes.
    """
    named = os.environ.get(variable)
    if named:
        return Path(named)
    source = _CHECKOUT / "native" / directory
    if (source / "Makefile").exists():
        return _build(source, _CHECKOUT / "build" / directory / file_name, needs)
    packaged = Path(__file__).with_name(file_name)
    if packaged.exists():
        return packaged
    raise LabError(
        f"There is no {file_name}",
        why="this package was built where the compiler cannot build it",
        hint=f"set {variable} to one",
    )


def _build(source: Path, made: Path, needs: str) -> Path:
    made.parent.mkdir(parents=True, exist_ok=True)
    # Others may want it at the same moment, and none must find it half written.
    with (made.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = subprocess.run(
            ["make", "--silent", "-C", str(source), f"OUT={made}"],
            check=False,
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise LabError(
            f"{made.name} cannot be built", why=result.stderr.strip(), hint=f"it needs {needs}"
        )
    return made
