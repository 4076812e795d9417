# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")])
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_PATH = re.compile(r"`((?:uffdballoon|native|tests|tools|examples|docs)/[\w/.@-]+)`")


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    paths = set(_PATH.findall(page.read_text(encoding="utf-8")))
    paths -= {"uffdballoon/PID.sock", "uffdballoon/cli/VERB.py"}  # one for each process or verb
    assert sorted(path for path in paths if not (_ROOT / path).exists()) == []


_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def test_every_test_that_is_named_is_there() -> None:
    for name, function in _tests_of_life():
        texts = [path.read_text(encoding="utf-8") for path in (_ROOT / "tests").rglob(name)]
        assert any(f"\ndef {function}(" in text for text in texts), (name, function)


def test_every_row_of_a_balloons_life_has_a_test() -> None:
    rows = [
        line for line in _life().splitlines() if re.match(r"\| (?!---|what \||objection)", line)
    ]
    links = re.compile(r"\]\(#the-table\) \|$")
    assert [each for each in rows if not (_TEST.search(each) or links.search(each))] == []
    assert len(rows) > 30


def _life() -> str:
    return (_ROOT / "docs/life.md").read_text(encoding="utf-8")


def _tests_of_life() -> set[tuple[str, str]]:
    found = set(_TEST.findall(_life()))
    assert found
    return found
