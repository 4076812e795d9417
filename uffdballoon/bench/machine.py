# SPDX-License-Identifier: GPL-2.0-or-later
"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "kernel": platform.release(),
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "virtualised": " hypervisor" in cpuinfo,
        "thp": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
    }


def tsc_hz() -> float:
    """Return the rate of the TSC, as /proc/cpuinfo tells it; within a percent."""
    cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    for line in cpuinfo.splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2]) * 1e6
    return 1e9
