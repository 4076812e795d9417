# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import importlib.metadata

import uffdballoon


def test_package_and_metadata_state_the_same_version() -> None:
    assert importlib.metadata.version("uffdballoon") == uffdballoon.__version__
