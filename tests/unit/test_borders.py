# SPDX-License-Identifier: GPL-2.0-or-later
"""Who uses the extensions. ruff says it of each file by itself, and not of both at once."""

from __future__ import annotations

import ast
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def _users(module: str) -> set[str]:
    """Return the directories of the product in which a file imports ``module``."""
    return {
        str(file.parent.relative_to(_ROOT))
        for file in (_ROOT / "uffdballoon").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == module
    }


def test_only_core_and_host_use_the_c_library() -> None:
    assert _users("uffdballoon._native") == {"uffdballoon/core", "uffdballoon/host"}


def test_only_benchmarks_use_what_is_measured_against() -> None:
    assert _users("uffdballoon.bench._bench") == {"uffdballoon/bench"}
