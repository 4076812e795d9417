# SPDX-License-Identifier: GPL-2.0-or-later
"""How the host makes huge pages, read from its files, and what that means for a balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from uffdballoon.host import thp
from uffdballoon.host.probes import _thp
from uffdballoon.host.thp import ThpSettings, read_thp_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _tunings(**changed: object) -> dict[str, str]:
    values = {
        "enabled": "always [madvise] never",
        "defrag": "always defer defer+madvise [madvise] never",
        "shmem_enabled": "always within_size advise [never] deny force",
        "khugepaged/defrag": "1",
        "khugepaged/max_ptes_none": "511",
        "khugepaged/pages_to_scan": "4096",
        "khugepaged/scan_sleep_millisecs": "10000",
    }
    return values | {name.replace("__", "/"): str(value) for name, value in changed.items()}


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ThpSettings]:
    def read(**changed: object) -> ThpSettings:
        for name, text in _tunings(**changed).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        found = read_thp_settings()
        assert found is not None
        return found

    monkeypatch.setattr(thp, "_BASE", tmp_path)
    return read


def test_the_chosen_of_several_words_is_in_brackets(tuned: Callable[..., ThpSettings]) -> None:
    settings = tuned()
    assert (settings.enabled, settings.defrag, settings.shmem_enabled) == (
        *("madvise", "madvise", "never"),
    )
    assert tuned(defrag="always defer [defer+madvise] never").defrag == "defer+madvise"
    assert tuned(enabled="always").enabled == "always"


@pytest.mark.parametrize(
    ("changed", "meaning"),
    [
        ({}, "a block of private memory is filled again when 1 page(s) of it are there"),
        ({"khugepaged__max_ptes_none": 0}, "it fills no block of which a page is in the balloon"),
        ({"khugepaged__max_ptes_none": 64}, "when 448 page(s) of it are there"),
        ({"enabled": "[never]"}, "it fills nothing"),
        ({"shmem_enabled": "[advise]"}, "a block of private or shared memory"),
        ({"enabled": "[never]", "shmem_enabled": "[force]"}, "a block of shared memory"),
        ({"shmem_enabled": "[deny]"}, "a block of private memory"),
    ],
)
def test_tunings_say_what_they_mean_for_a_balloon(
    changed: dict[str, object], meaning: str, tuned: Callable[..., ThpSettings]
) -> None:
    assert meaning in tuned(**changed).describe()


def test_the_pace_is_in_seconds(tuned: Callable[..., ThpSettings]) -> None:
    assert "4096 pages every 10 s" in tuned().describe()
    assert "every 0.5 s" in tuned(khugepaged__scan_sleep_millisecs=500).describe()


def test_a_kernel_without_huge_pages_has_no_tunings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thp, "_BASE", tmp_path / "lacking")
    assert read_thp_settings() is None
    assert _thp().detail == "there are none"
