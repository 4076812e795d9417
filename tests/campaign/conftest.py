# SPDX-License-Identifier: GPL-2.0-or-later
"""The seed of a campaign: UFFDBALLOON_SEED, or the same in every run."""

from __future__ import annotations

import os
import random

import pytest

from tests.system.conftest import SMALL, accel, huge_pages, qemu, start_qemu

__all__ = ["SMALL", "accel", "huge_pages", "qemu", "start_qemu"]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """What is random in a test; the name of the test is part of it."""
    seed = os.environ.get("UFFDBALLOON_SEED", "1")
    return random.Random(f"{seed} {request.node.name}")  # noqa: S311 - moments, not secrets
