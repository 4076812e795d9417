# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/glossary.md has every word that is typed or printed, and is sorted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uffdballoon.model.blockstate import BlockState
from uffdballoon.model.granule import Granule
from uffdballoon.model.ladder import RungKind
from uffdballoon.model.observing import ObserverKind
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.terms import ContractKind
from uffdballoon.model.touch import Role, Verdict

if TYPE_CHECKING:
    import enum

_GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"
_WORDS, _EVENTS = _GLOSSARY.read_text(encoding="utf-8").split("## Kinds of events")
_ENTRY = re.compile(r"^- \*\*(.+?)\*\*: ", re.MULTILINE)


@pytest.mark.parametrize("kinds", [ContractKind, RungKind, ObserverKind])
def test_each_contract_rung_and_observer_has_an_entry(kinds: type[enum.Enum]) -> None:
    assert {kind.value for kind in kinds} <= set(_ENTRY.findall(_WORDS))


def test_each_kind_of_event_has_an_entry_in_the_order_of_the_code() -> None:
    assert _ENTRY.findall(_EVENTS) == [kind.value for kind in EventKind]


@pytest.mark.parametrize("kinds", [BlockState, Granule, Role, Verdict])
def test_each_word_of_the_output_is_named_where_it_is_explained(kinds: type[enum.Enum]) -> None:
    assert [kind.value for kind in kinds if f"`{kind.value}`" not in _WORDS] == []


def test_words_are_sorted_and_none_is_there_twice() -> None:
    words = [word.casefold() for word in _ENTRY.findall(_WORDS)]
    assert words == sorted(set(words))
