# SPDX-License-Identifier: GPL-2.0-or-later
"""The polling of a guest's driver, with a QEMU that is late."""

from __future__ import annotations

from typing import Any

from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu.statistics import GuestStatistics


class _Late:
    """A monitor that does what it is asked to, and says so too late."""

    def __init__(self) -> None:
        self.periods_s: list[object] = [0]

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401
        assert arguments is not None
        if command == "qom-get":
            return self.periods_s[-1]
        self.periods_s.append(arguments["value"])
        raise QmpError("the monitor refused qom-set", why="no answer yet")

    def hmp(self, line: str) -> str:
        raise AssertionError(line)


def test_a_polling_that_qemu_was_late_to_begin_is_ended_all_the_same() -> None:
    qemu = _Late()
    statistics = GuestStatistics(qemu, "/balloon")
    statistics.want("set", 1)
    assert qemu.periods_s == [0, 1]
    statistics.close()
    assert qemu.periods_s == [0, 1, 0]
