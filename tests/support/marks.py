# SPDX-License-Identifier: GPL-2.0-or-later
"""Marks that many files of tests begin with, for their ``pytestmark``."""

from __future__ import annotations

import pytest

REAL_QEMU = [
    pytest.mark.needs_root,
    pytest.mark.needs_qemu,
    pytest.mark.needs_userfaultfd,
    pytest.mark.needs_ptrace,
]
"""Attaches to a QEMU that runs."""
