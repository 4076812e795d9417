# SPDX-License-Identifier: GPL-2.0-or-later
"""A runtime directory of the test's own, whoever runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.daemon import runtime

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def use_runtime(monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    """Have managers of this process listen below ``path``; return the directory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    monkeypatch.setattr(runtime, "_ROOTS", path / "uffdballoon")
    return runtime.runtime_directory()
