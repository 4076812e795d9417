# SPDX-License-Identifier: GPL-2.0-or-later
"""Borders that a reader counts on: classes that fit into a head, and no circle of files."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROOT = Path(__file__).parents[2]
_MOST_LINES = 250
_LONG = {
    "uffdballoon/target/process.py:Target",
    "uffdballoon/vmm/qemu/machine.py:Machine",
}
"""Still to be divided; no other is to join them."""


def _modules() -> dict[str, Path]:
    """Return all files of the program by the name that they are imported by."""
    files = sorted((_ROOT / "uffdballoon").rglob("*.py"))
    return {_name_of(file): file for file in files}


def _name_of(file: Path) -> str:
    parts = file.relative_to(_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(statements: Iterable[ast.AST], known: Iterable[str]) -> Iterator[str]:
    """Yield the modules of ours that are imported when the program runs, also late ones.

    Who imports from a package needs its ``__init__.py`` only for a name that is no module.
    """
    for statement in statements:
        match statement:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name in known)
            case ast.ImportFrom(module=str(module), names=names) if module in known:
                for alias in names:
                    inner = f"{module}.{alias.name}"
                    yield inner if inner in known else module
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
                yield from _imported(otherwise, known)
            case _:
                yield from _imported(ast.iter_child_nodes(statement), known)


def _circle(imports: dict[str, set[str]]) -> list[str]:
    """Return files that import each other in a circle, the first once more at the end."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


def _classes() -> Iterator[tuple[str, int]]:
    """Yield ``file:Class`` and its lines, without its decorators."""
    for file in _modules().values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                yield f"{file.relative_to(_ROOT)}:{node.name}", lines


def test_no_class_is_longer_than_a_reader_can_hold() -> None:
    long = {name: lines for name, lines in _classes() if lines > _MOST_LINES}
    too_long = [f"  {name}: {lines} lines" for name, lines in long.items() if name not in _LONG]
    assert not too_long, "\n".join(
        [f"a class has at most {_MOST_LINES} lines; give a subject of these a file:", *too_long]
    )
    assert long.keys() >= _LONG, f"take out of _LONG what is short enough: {_LONG - long.keys()}"


def test_no_files_import_each_other_in_a_circle() -> None:
    known = _modules()
    imports = {
        name: set(_imported(ast.parse(file.read_text()).body, known))
        for name, file in known.items()
    }
    circle = _circle(imports)
    assert not circle, (
        "these import each other; what both need belongs into a file below them:\n  "
        + "\n  imports ".join(circle)
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import uffdballoon.a", {"uffdballoon.a"}),
        ("from uffdballoon.a import b", {"uffdballoon.a.b"}),
        ("from uffdballoon.a import c", {"uffdballoon.a"}),
        ("def late():\n    from uffdballoon.a import c", {"uffdballoon.a"}),
        ("if TYPE_CHECKING:\n    from uffdballoon.a import c", set()),
        ("import os\nfrom os import path", set()),
    ],
)
def test_an_import_counts_if_it_happens_when_the_program_runs(source: str, found: set[str]) -> None:
    known = ["uffdballoon.a", "uffdballoon.a.b"]
    assert set(_imported(ast.parse(source).body, known)) == found


def test_a_circle_is_found_and_named_in_its_order() -> None:
    circle = _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert circle[0] == circle[-1]
    assert "".join(circle[:-1]) in {"abc", "bca", "cab"}
