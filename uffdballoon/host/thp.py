# SPDX-License-Identifier: GPL-2.0-or-later
"""How the host makes huge pages (Documentation/admin-guide/mm/transhuge.rst)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BASE = Path("/sys/kernel/mm/transparent_hugepage")
_PAGES_OF_HUGE = 512


@dataclass(frozen=True, slots=True)
class ThpSettings:
    """The host's tunings, as they stand."""

    enabled: str
    defrag: str
    shmem_enabled: str
    khugepaged_defrag: bool
    max_ptes_none: int
    pages_to_scan: int
    scan_sleep_ms: int

    @property
    def collapses_private(self) -> bool:
        """Does khugepaged look at anonymous memory? QEMU asks for it by MADV_HUGEPAGE."""
        return self.enabled != "never"

    @property
    def collapses_shared(self) -> bool:
        return self.shmem_enabled not in ("never", "deny")

    def describe(self) -> str:
        """Say how the tunings stand, and what they mean for a balloon."""
        pace = f"{self.pages_to_scan} pages every {self.scan_sleep_ms / 1000:g} s"
        stand = (
            f"enabled {self.enabled}, defrag {self.defrag}, shmem_enabled {self.shmem_enabled}; "
            f"khugepaged: max_ptes_none {self.max_ptes_none}, {pace}"
        )
        return f"{stand}: {self._meaning()}"

    def _meaning(self) -> str:
        kinds = [
            kind
            for kind, collapses in (
                ("private", self.collapses_private),
                ("shared", self.collapses_shared),
            )
            if collapses
        ]
        if not kinds:
            return "it fills nothing"
        if self.max_ptes_none == 0:
            return "it fills no block of which a page is in the balloon"
        needed = _PAGES_OF_HUGE - self.max_ptes_none
        return (
            f"a block of {' or '.join(kinds)} memory is filled again when {needed} page(s) of it "
            "are there; what is armed is kept from it"
        )


def read_thp_settings() -> ThpSettings | None:
    """Read them; None where there are no huge pages."""
    try:
        return ThpSettings(
            enabled=_chosen("enabled"),
            defrag=_chosen("defrag"),
            shmem_enabled=_chosen("shmem_enabled"),
            khugepaged_defrag=_number("khugepaged/defrag") != 0,
            max_ptes_none=_number("khugepaged/max_ptes_none"),
            pages_to_scan=_number("khugepaged/pages_to_scan"),
            scan_sleep_ms=_number("khugepaged/scan_sleep_millisecs"),
        )
    except (OSError, ValueError):
        return None


def _chosen(name: str) -> str:
    text = (_BASE / name).read_text()
    found = re.search(r"\[(\w\S*)\]", text)
    return found[1] if found else text.strip()


def _number(name: str) -> int:
    return int((_BASE / name).read_text())
