# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs and cgroups of the lab whose maker has ended without ending them.

A maker that is killed has a reaper that kills its QEMU. Where that is killed as well, as by the
end of a container, nobody is left who would. What such a QEMU is doing there, and whether somebody
looks at it, is not known here: it is told, and left. An empty cgroup is nobody's, and removed.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from uffdballoon.lab.host_state import started_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWNER = "UFFDBALLOON_LAB_OWNER"
_GROUP = re.compile(r"uffdballoon-.*-([1-9][0-9]{0,9})")
_REAPED_WITHIN_S = 1.0


def owned_environment() -> dict[str, str]:
    """Return the environment for a process that is to end with us: it says who we are."""
    pid = os.getpid()
    return {**os.environ, _OWNER: f"{pid}:{started_ticks(pid)}"}


def tell_left_behind(cgroups: Path = Path("/sys/fs/cgroup")) -> list[str]:
    """Say in words what makers that have ended left; remove of it the cgroups that are empty."""
    deadline = time.monotonic() + _REAPED_WITHIN_S  # its reaper may be about to end a QEMU
    while (told := list(_processes())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [*told, *_remove_cgroups(cgroups)]


def _processes() -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            owner = process.environ().get(_OWNER, "")
            name = process.name()
        except (psutil.Error, OSError):  # it ended, or is another user's
            continue
        pid, _, ticks = owner.partition(":")
        if pid.isdecimal() and ticks.isdecimal() and started_ticks(int(pid)) != int(ticks):
            yield (
                f"process {process.pid} ({name}) still runs, which process {pid} started and left; "
                f"it is ended by: kill -KILL {process.pid}"
            )


def _remove_cgroups(root: Path) -> Iterator[str]:
    for group in sorted([*root.glob("uffdballoon-*/"), *root.glob("*/uffdballoon-*/")]):
        maker = _GROUP.fullmatch(group.name)
        if maker is None or started_ticks(int(maker[1])) is not None:
            continue
        try:
            for inner in sorted(group.glob("*/")):
                inner.rmdir()
            group.rmdir()
        except FileNotFoundError:
            continue  # somebody else was faster
        except OSError as error:
            yield f"the cgroup {group} stays, which process {maker[1]} left: {error.strerror}"
        else:
            yield f"the cgroup {group} is removed, which process {maker[1]} left"
