# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import uffdballoon
from uffdballoon._native import ffi, lib


def test_library_and_package_state_the_same_version() -> None:
    assert ffi.string(lib.uffdb_version()).decode() == uffdballoon.__version__


def test_library_states_the_soname_that_its_version_gives_it() -> None:
    minor = ".".join(uffdballoon.__version__.split(".")[:2])
    assert ffi.string(lib.uffdb_soname()).decode() == f"libuffdballoon.so.{minor}"
