# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the firmware that boots the micro-guest at once."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

_QBOOT = "qboot.rom"


@functools.cache
def quick_firmware(binary: str) -> tuple[str, ...]:
    """Return the options that have a QEMU boot by qboot; none when it comes without it.

    SeaBIOS looks for disks and option ROMs that a ``-kernel`` has no need of: where KVM
    emulates a guest's first instructions that takes three seconds, and qboot a tenth of one.
    """
    try:
        told = subprocess.run(
            [binary, "-L", "help"], check=False, capture_output=True, text=True
        ).stdout
    except OSError:
        return ()  # whoever starts it says so
    found = any((Path(directory) / _QBOOT).exists() for directory in told.splitlines())
    return ("-bios", _QBOOT) if found else ()
