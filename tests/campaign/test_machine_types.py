# SPDX-License-Identifier: GPL-2.0-or-later
"""Every PC that the QEMU on PATH has: without a monitor RAM is where the monitor says."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.paused import PausedQemu
from tests.system.test_ram_or_refusal import joined, layout_of
from uffdballoon.errors import UnsupportedError

pytestmark = [pytest.mark.campaign, pytest.mark.needs_root, pytest.mark.needs_qemu]

_PC = re.compile(r"^(pc|q35|microvm|isapc|pc-(?:i440fx|q35)-[0-9.]+) ", re.MULTILINE)
# Around the splits: q35 from 2816 MiB on at 2 GiB, i440fx from 3584 MiB on at 3 GiB.
_MIB = (2048, 2815, 2816, 3072, 3583, 3584, 4096, 5120)
_ISA_END_MIB = 3584
"""QEMU 10.0 refuses more than 32 bits of addresses for the CPU of an isapc, which 7.2 allows."""
_DIFFER = {"isapc": 3584, "microvm": 2816}
"""Where versions split so much RAM differently: refused from that many MiB on."""


def _machine_types() -> list[str]:
    try:
        told = subprocess.run(
            ["qemu-system-x86_64", "-machine", "help"], check=True, capture_output=True, text=True
        ).stdout
    except FileNotFoundError:
        return []  # the marker says so
    return _PC.findall(told)


@pytest.mark.parametrize("machine", _machine_types())
def test_ram_is_where_the_monitor_says(machine: str) -> None:
    for mib in _MIB:
        if machine == "isapc" and mib >= _ISA_END_MIB:
            continue
        with PausedQemu("-machine", machine, "-m", f"{mib}M") as qemu:
            told = joined(layout_of(qemu, by_monitor=True))
            if mib >= _DIFFER.get(machine, mib + 1):
                with pytest.raises(UnsupportedError, match="differ"):
                    layout_of(qemu, by_monitor=False)
            else:
                assert joined(layout_of(qemu, by_monitor=False)) == told
