# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's tunings of huge pages, changed for a while and put back whatever happens."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import LabError
from uffdballoon.lab.host_state import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

_BASE = "/sys/kernel/mm/transparent_hugepage"

MOST_AGGRESSIVE = {
    "khugepaged/max_ptes_none": "511",
    "khugepaged/pages_to_scan": "1000000",
    "khugepaged/scan_sleep_millisecs": "0",
    "khugepaged/alloc_sleep_millisecs": "0",
    "khugepaged/defrag": "1",
}
"""A block is filled again as soon as one page of it is there, and khugepaged never sleeps."""

FILLING_NOTHING = {"khugepaged/max_ptes_none": "0"}
"""No block with a hole is filled: until what khugepaged does is to be measured."""


class ThpTunings:
    """Sets tunings, by their names below transparent_hugepage/, until it is left."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {f"{_BASE}/{name}": value for name, value in values.items()}
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._held.enter_context(HOST.settings(self._values))
        except OSError as error:
            raise LabError(
                "the host's huge pages cannot be tuned",
                why=str(error),
                hint="run as root, on a kernel with transparent huge pages",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
