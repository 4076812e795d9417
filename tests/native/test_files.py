# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of the C library: what calls what goes one way, and a name means one thing."""

from __future__ import annotations

import graphlib
import os
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SOURCES = sorted((_ROOT / "native" / "src").glob("*.[ch]"))
_LIBRARY = _ROOT / "build" / "native" / "libuffdballoon.a"

# nm(1) -A: archive, member, address (none of what is elsewhere), kind of symbol, name.
_SYMBOL = re.compile(
    r"^\S+:(?P<file>\w+\.c)\.o:[0-9a-f ]+ (?P<kind>\w) (?P<name>\w+)$", re.MULTILINE
)
_DEFINED = "TDBRVW"
_LOCAL = re.compile(r"^static (?!inline)[^=;()]*[ *](\w+)\(", re.MULTILINE)
_INCLUDE = re.compile(r'^#include "(\w+\.h)"', re.MULTILINE)


def _calls() -> dict[str, set[str]]:
    """Return the files that each file takes functions or data of, by the object files."""
    shown = subprocess.run(
        ["nm", "-A", str(_LIBRARY)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    owner: dict[str, str] = {}
    needed: dict[str, set[str]] = defaultdict(set)
    for symbol in _SYMBOL.finditer(shown):
        if symbol["kind"] in _DEFINED:
            owner[symbol["name"]] = symbol["file"]
        elif symbol["kind"] == "U":
            needed[symbol["file"]].add(symbol["name"])
    return {
        file: {owner[name] for name in names if name in owner} for file, names in needed.items()
    }


def _refuse_circles(graph: dict[str, set[str]]) -> None:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle: " + " <- ".join(error.args[1]))


def test_no_file_calls_one_that_it_is_called_by() -> None:
    if not _LIBRARY.exists() and os.environ.get("UFFDBALLOON_REQUIRE") != "1":
        pytest.skip("not built: make build-native")
    calls = _calls()
    assert calls["loop.c"] >= {"judge.c", "held.c"}, "nm was not understood"
    _refuse_circles(calls)


def test_no_header_includes_one_that_includes_it() -> None:
    headers = [source for source in _SOURCES if source.suffix == ".h"]
    _refuse_circles({header.name: set(_INCLUDE.findall(header.read_text())) for header in headers})


def test_no_local_function_has_the_name_of_one_in_another_file() -> None:
    names = Counter(
        name
        for source in _SOURCES
        if source.suffix == ".c"
        for name in set(_LOCAL.findall(source.read_text()))
    )
    assert [name for name, files in names.items() if files > 1] == []
