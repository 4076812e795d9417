# SPDX-License-Identifier: GPL-2.0-or-later
"""What is installed tells its types to whoever imports it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uffdballoon import _native
from uffdballoon.bench import _bench

if TYPE_CHECKING:
    from types import ModuleType

_ROOT = Path(__file__).parents[2]
_OPTIONS = {"wheel.cmake": "false", "wheel.py-api": "py3"}  # the Python files alone: seconds


def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    options = {**_OPTIONS, "build-dir": tmp_path / "build"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    command += [f"--config-settings={name}={value}" for name, value in options.items()]
    subprocess.run([*command, "--wheel-dir", tmp_path, _ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        assert "uffdballoon/py.typed" in held.namelist()


@pytest.mark.parametrize("extension", [_native, _bench])
def test_an_extension_is_installed_with_its_stub(extension: ModuleType) -> None:
    assert extension.__file__
    binary = Path(extension.__file__)
    assert binary.with_name(binary.name.removesuffix(".abi3.so") + ".pyi").exists()
