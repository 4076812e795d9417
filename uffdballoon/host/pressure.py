# SPDX-License-Identifier: GPL-2.0-or-later
"""How short of memory the host is: /proc/pressure/memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FILE = Path("/proc/pressure/memory")
_SHARES = re.compile(
    # As psi_show() writes it (kernel/sched/psi.c).
    r"some avg10=([0-9]{1,3}\.[0-9]{2}) .*\nfull avg10=([0-9]{1,3}\.[0-9]{2}) .*\n?"
)


class Pressure(NamedTuple):
    """Shares of the last 10 s in which tasks waited for memory, in percent: some, and all."""

    some: float
    full: float


def parse_pressure(text: str) -> Pressure | None:
    """Read what the file says; None when it is of another shape."""
    match = _SHARES.fullmatch(text)
    return None if match is None else Pressure(float(match[1]), float(match[2]))


def memory_pressure() -> Pressure | None:
    """Return the host's pressure; None where the kernel does not count it (psi=0, CONFIG_PSI)."""
    try:
        return parse_pressure(_FILE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
