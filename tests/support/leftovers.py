# SPDX-License-Identifier: GPL-2.0-or-later
"""Find what a test run left behind on the host: processes, hugepages, tunings, mounts."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import psutil

_VARIABLE = "UFFDBALLOON_TEST_RUN"

_TUNINGS = (
    "/proc/sys/kernel/yama/ptrace_scope",
    "/proc/sys/vm/max_map_count",
    "/proc/sys/vm/nr_hugepages",
    "/proc/sys/vm/nr_overcommit_hugepages",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/unprivileged_userfaultfd",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/transparent_hugepage/defrag",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
)


class HostState:
    """Remember the host as it is, and tell later what has become different.

    Processes are told apart by a variable in their environment that every child inherits, so
    that those of another run on the same machine are not counted, and those that were orphaned
    or made themselves a session of their own are.
    """

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex
        os.environ[_VARIABLE] = self._run
        self._settings = self._read_settings()

    def differences(self) -> list[str]:
        """Say in words what is not as it was; wait for processes that are just ending."""
        _, alive = psutil.wait_procs(self._own_processes(), timeout=10)
        found = [f"still running: {_describe(process)}" for process in alive]
        now = self._read_settings()
        found += [
            f"{name}: was {before!r}, is {now.get(name)!r}"
            for name, before in self._settings.items()
            if now.get(name) != before
        ]
        return found

    def _own_processes(self) -> list[psutil.Process]:
        own = []
        for process in psutil.process_iter():
            if process.pid == os.getpid():
                continue
            try:
                if process.environ().get(_VARIABLE) == self._run:
                    own.append(process)
            except psutil.Error:
                continue
        return own

    @staticmethod
    def _read_settings() -> dict[str, str]:
        settings = {p: Path(p).read_text().strip() for p in _TUNINGS if Path(p).exists()}
        settings["mounts"] = "\n".join(sorted(Path("/proc/self/mounts").read_text().splitlines()))
        return settings


def _describe(process: psutil.Process) -> str:
    try:
        return f"pid {process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"pid {process.pid}"
