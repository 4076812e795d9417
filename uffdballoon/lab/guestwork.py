# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that runs in the Linux guest (native/guestwork/README.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.lab.built import find_built

if TYPE_CHECKING:
    from pathlib import Path


def find_guestwork() -> Path:
    """Find the program, or build it when this is a source checkout.

    Looks at UFFDBALLOON_GUESTWORK, at the checkout, at the installed package. Raises LabError
    when there is none.
    """
    needs = "gcc, make and a static libc (libc6-dev) on an x86-64 machine"
    return find_built("guestwork", "guestwork", "UFFDBALLOON_GUESTWORK", needs)
