# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import uffdballoon
from uffdballoon._native import ffi, lib


def test_library_and_package_state_the_same_version() -> None:
    assert ffi.string(lib.uffdb_version()).decode() == uffdballoon.__version__
