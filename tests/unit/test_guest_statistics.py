# SPDX-License-Identifier: GPL-2.0-or-later
"""A device polls its driver for those who want to know, and as before for nobody else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.monitor import WrittenMonitor
from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu import statistics as module
from uffdballoon.vmm.qemu.statistics import GuestStatistics, read_statistics

_PATH = "/machine/peripheral/balloon0"
_INTERVAL = f"qom-get {_PATH} guest-stats-polling-interval"
_STATS = f"qom-get {_PATH} guest-stats"
_UNKNOWN = (1 << 64) - 1


def device(period_s: object = 0, told: object = None) -> WrittenMonitor:
    """Return the monitor of a device that polls so often; qom-set changes that."""
    monitor = WrittenMonitor({_INTERVAL: period_s, _STATS: told or QmpError("none")})

    def change(given: dict[str, Any]) -> None:
        monitor.answers[_INTERVAL] = given["value"]

    monitor.answers["qom-set"] = change
    return monitor


def changes(monitor: WrittenMonitor) -> list[object]:
    return [given["value"] for given in monitor.was_asked("qom-set")]


def test_values_are_read_by_their_names_and_unknown_ones_left_out() -> None:
    # QEMU 7.2 says that it does not know one by all its bits; -1 is how JSON may carry that.
    stats = {
        "stat-total-memory": 2 << 30,
        "stat-free-memory": 1 << 20,
        "stat-swap-in": _UNKNOWN,
        "stat-swap-out": -1,
        "stat-major-faults": 0,
    }
    monitor = device(told={"last-update": 1700000000, "stats": stats})
    values, at_s = read_statistics(monitor, _PATH)
    assert values == {"total-memory": 2 << 30, "free-memory": 1 << 20, "major-faults": 0}
    assert at_s == 1700000000


@pytest.mark.parametrize("at_s", [0, -5, 1 << 60, None])
def test_a_time_that_cannot_be_is_none(at_s: int | None) -> None:
    told: dict[str, object] = {"stats": {"stat-free-memory": 1}}
    if at_s is not None:
        told["last-update"] = at_s
    assert read_statistics(device(told=told), _PATH) == ({"free-memory": 1}, 0)


@pytest.mark.parametrize(
    "told", [7, [], {}, {"stats": None}, {"stats": {"a": "b"}}, {"stats": {"a": [1]}}]
)
def test_statistics_that_make_no_sense_are_none(told: object) -> None:
    assert read_statistics(device(told=told), _PATH) == ({}, 0)


def test_the_device_polls_while_somebody_wants_to_know() -> None:
    monitor = device()
    statistics = GuestStatistics(monitor, _PATH)
    statistics.want("set", 1)
    statistics.want("set", 1)
    statistics.enough("set")
    statistics.enough("set")
    assert changes(monitor) == [1, 0]


def test_it_polls_as_often_as_the_most_curious_wants() -> None:
    monitor = device()
    statistics = GuestStatistics(monitor, _PATH)
    for who, period_s in (("a", 5), ("b", 2), ("c", 9)):
        statistics.want(who, period_s)
    statistics.enough("b")
    statistics.close()
    assert changes(monitor) == [5, 2, 5, 0]


@pytest.mark.parametrize(
    ("before_s", "made"), [(3, [1, 3]), (1, []), (0, [1, 0]), (10, [1, 10]), (7, [1, 0])]
)
def test_a_period_of_another_client_stays_and_comes_back(before_s: int, made: list[int]) -> None:
    # 7 s is what nobody else takes: a manager that was killed has left it.
    monitor = device(before_s)
    statistics = GuestStatistics(monitor, _PATH)
    statistics.want("set", 1)
    statistics.close()
    assert changes(monitor) == made


def test_who_wants_less_than_another_client_changes_nothing() -> None:
    monitor = device(2)
    statistics = GuestStatistics(monitor, _PATH)
    statistics.want("show", 7)
    assert changes(monitor) == []


@pytest.mark.parametrize("period", [QmpError("no"), None, "often", [1]])
def test_a_device_that_does_not_know_it_is_left_alone(period: object) -> None:
    monitor = device(period)
    statistics = GuestStatistics(monitor, _PATH)
    statistics.want("set", 1)
    statistics.close()
    assert changes(monitor) == []


def test_what_was_shown_is_polled_for_a_minute_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(s=1000.0)
    clock = SimpleNamespace(monotonic=lambda: now.s, time=lambda: 1700000000.0 + now.s)
    monkeypatch.setattr(module, "time", clock)
    monitor = device(told={"last-update": 1700000990, "stats": {"stat-free-memory": 4096}})
    statistics = GuestStatistics(monitor, _PATH)
    assert statistics.due_s() is None
    shown = statistics.show()
    assert (shown.values, shown.age_s) == ({"free-memory": 4096}, 10.0)
    now.s += 30
    assert statistics.due_s() == 30
    statistics.show()
    now.s += 59
    assert (statistics.due_s(), changes(monitor)) == (1, [7])
    now.s += 1
    assert (statistics.due_s(), changes(monitor)) == (None, [7, 0])


def test_a_driver_that_has_told_nothing_has_no_age() -> None:
    shown = GuestStatistics(device(), _PATH).show()
    assert (shown.age_s, shown.values) == (None, {})


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
