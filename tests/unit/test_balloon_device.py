# SPDX-License-Identifier: GPL-2.0-or-later
"""The balloon device as monitors show it, and how far a driver has come, by answers written down.

Types and properties are those that QEMU 7.2 answers with.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.support.monitor import WrittenMonitor
from uffdballoon.errors import QmpError, UnsupportedError
from uffdballoon.model.records.balloon import ProgressState
from uffdballoon.vmm.qemu.balloon import (
    BalloonDevice,
    BalloonTarget,
    actual_bytes,
    find_balloon,
    require_balloon,
    stop_where_it_is,
)

if TYPE_CHECKING:
    from uffdballoon.vmm.qemu.statistics import GuestStatistics

_G = 1 << 30
_PATH = "/machine/peripheral/balloon0"
_BACKEND = f"{_PATH}/virtio-backend"
DEVICE = BalloonDevice(_PATH, _BACKEND, reports_free_pages=False, deflates_on_oom=False)


def machine(**properties: Any) -> WrittenMonitor:  # noqa: ANN401 - any JSON
    """Return the monitor of a machine with a balloon of these properties."""
    return WrittenMonitor(
        {
            "qom-list /machine/peripheral": [
                {"name": "type", "type": "string"},
                {"name": "net0", "type": "child<virtio-net-pci>"},
                {"name": "balloon0", "type": "child<virtio-balloon-pci>"},
            ],
            f"qom-list {_PATH}": [
                {"name": "deflate-on-oom", "type": "bool"},
                {"name": "virtio-bus", "type": "child<virtio-pci-bus>"},
                {"name": "virtio-backend", "type": "child<virtio-balloon-device>"},
            ],
            **{f"qom-get {_PATH} {name}": value for name, value in properties.items()},
        }
    )


def test_a_device_is_found_with_its_backend_and_what_it_can() -> None:
    monitor = machine(**{"free-page-reporting": True, "deflate-on-oom": True})
    assert find_balloon(monitor) == BalloonDevice(
        _PATH, _BACKEND, reports_free_pages=True, deflates_on_oom=True
    )


def test_a_device_that_is_older_than_a_property_has_it_not() -> None:
    assert find_balloon(machine(**{"deflate-on-oom": False})) == DEVICE


def test_a_device_without_an_id_is_found() -> None:
    anonymous = "/machine/peripheral-anon"
    monitor = WrittenMonitor(
        {
            "qom-list /machine/peripheral": [],
            f"qom-list {anonymous}": [
                {"name": "device[0]", "type": "child<virtio-balloon-ccw>"},
            ],
            f"qom-list {anonymous}/device[0]": [],
        }
    )
    found = find_balloon(monitor)
    assert found is not None
    assert (found.path, found.backend) == (f"{anonymous}/device[0]", f"{anonymous}/device[0]")


def test_a_machine_without_one_has_none() -> None:
    assert find_balloon(WrittenMonitor({"qom-list": [{"name": "a", "type": "link<x>"}]})) is None


@pytest.mark.parametrize(
    "answer", [7, None, [7], [{"type": "child<virtio-balloon-pci>"}], {"type": "virtio-balloon"}]
)
def test_a_list_that_is_none_is_refused_by_name(answer: object) -> None:
    with pytest.raises(QmpError, match="which devices there are"):
        find_balloon(WrittenMonitor({"qom-list": answer}))


@pytest.mark.parametrize("answer", [None, [], {}, {"actual": None}, {"actual": "x"}, QmpError("")])
def test_what_is_left_to_the_guest_is_unknown_where_nobody_says(answer: object) -> None:
    assert actual_bytes(WrittenMonitor({"query-balloon": answer})) is None


def test_what_is_lacking_to_ask_the_driver_is_named() -> None:
    monitor = WrittenMonitor({})
    assert require_balloon(monitor, DEVICE) is DEVICE
    with pytest.raises(UnsupportedError) as refused:
        require_balloon(None, DEVICE)
    assert "--qmp" in refused.value.hint
    with pytest.raises(UnsupportedError) as refused:
        require_balloon(monitor, None)
    assert "device_add" in refused.value.hint


class _Asked:
    """A driver that was asked to go from 4 GiB to 1 GiB; it says of its memory what it is told."""

    def __init__(self, step_bytes: int | None = None) -> None:
        self.now_s = 100.0
        self.actual: object = 4 * _G
        self.told: dict[str, int] = {}
        self._listens = False
        self.monitor = WrittenMonitor(
            {
                "balloon": {},
                "query-balloon": lambda _: {"actual": self.actual},
                "query-status": {"status": "running"},
                "x-query-virtio-status": {"status": {"statuses": ["VIRTIO_CONFIG_S_DRIVER_OK: x"]}},
            }
        )
        statistics = SimpleNamespace(
            want=lambda *_: setattr(self, "_listens", True),
            enough=lambda *_: setattr(self, "_listens", False),
            read=lambda: self.told,
        )
        self.target = BalloonTarget(
            self.monitor,
            DEVICE,
            cast("GuestStatistics", statistics),
            _G,
            lambda: self.now_s,
            step_bytes=step_bytes,
        )

    def is_listened_to(self) -> bool:
        return self._listens

    def after(self, seconds: float, actual: object) -> tuple[ProgressState, str]:
        self.now_s += seconds
        self.actual = actual
        progress = self.target.progress()
        assert (progress.target_bytes, progress.before_bytes) == (_G, 4 * _G)
        return progress.state, progress.why


def test_a_driver_is_asked_once_and_looked_at_until_it_is_there() -> None:
    asked = _Asked()
    assert asked.after(1, 3 * _G) == (ProgressState.MOVING, "")
    assert asked.after(4, 2 * _G) == (ProgressState.MOVING, "")
    assert asked.after(60, _G) == (ProgressState.REACHED, "")
    assert asked.monitor.was_asked("balloon") == [{"value": _G}]


def test_a_driver_that_is_asked_in_steps_is_asked_for_each_once_it_is_there() -> None:
    asked = _Asked(_G // 2)
    assert not asked.target.is_at_step()
    asked.actual = 7 * _G // 2
    assert asked.target.is_at_step()
    asked.monitor.answers["balloon"] = QmpError("busy")
    assert not asked.target.step(2 * _G)
    assert asked.target.is_at_step(), "what QEMU did not take is asked again"
    asked.monitor.answers["balloon"] = {}
    assert asked.target.step(2 * _G)
    assert not asked.target.is_at_step()
    asked.actual = 3 * _G // 2
    asked.target.step(2 * _G)
    assert not asked.target.is_stepping, "no more than was wanted is asked for"
    values = [each["value"] for each in asked.monitor.was_asked("balloon")]
    assert values == [7 * _G // 2, 3 * _G // 2, 3 * _G // 2, _G]
    assert asked.after(1, _G) == (ProgressState.REACHED, "")


def test_a_stop_ends_the_steps() -> None:
    asked = _Asked(_G // 2)
    asked.target.stop("it broke too much")
    asked.actual = 7 * _G // 2
    assert not asked.target.is_at_step()
    assert asked.after(1, asked.actual) == (ProgressState.STOPPED, "it broke too much")


def test_nobody_stops_memory_on_its_way_back_to_the_guest() -> None:
    left = [_G]
    monitor = WrittenMonitor({"balloon": {}, "query-balloon": lambda _: {"actual": left[0]}})
    statistics = SimpleNamespace(want=lambda *_: None, enough=lambda *_: None)
    target = BalloonTarget(monitor, DEVICE, cast("GuestStatistics", statistics), 4 * _G)
    for left[0] in (_G, 3 * _G):
        assert stop_where_it_is(monitor, target, "it broke too much") is None
        assert target.progress().state is ProgressState.MOVING
    assert monitor.was_asked("balloon") == [{"value": 4 * _G}]
    left[0] = 4 * _G
    assert target.progress().state is ProgressState.REACHED
    left[0] = 2 * _G  # somebody else has asked for more since
    assert stop_where_it_is(monitor, target, "it broke too much") == 2 * _G
    assert target.progress().state is ProgressState.STOPPED


@pytest.mark.parametrize("answers", [{"query-balloon": QmpError("")}, {"balloon": QmpError("")}])
def test_a_driver_that_cannot_be_asked_is_not_called_stopped(answers: dict[str, object]) -> None:
    asked = _Asked()
    asked.monitor.answers |= answers
    assert stop_where_it_is(asked.monitor, asked.target, "it broke too much") is None
    assert stop_where_it_is(asked.monitor, None, "it broke too much") is None
    asked.monitor.answers |= {"balloon": {}, "query-balloon": {"actual": 3 * _G}}
    assert asked.after(1, 3 * _G)[0] is ProgressState.MOVING
    assert stop_where_it_is(asked.monitor, asked.target, "it broke too much") == 3 * _G
    assert asked.after(1, 3 * _G) == (ProgressState.STOPPED, "it broke too much")


def test_more_memory_is_given_back_at_once_whatever_the_step() -> None:
    monitor = WrittenMonitor({"balloon": {}, "query-balloon": {"actual": _G}})
    statistics = SimpleNamespace(want=lambda *_: None, enough=lambda *_: None)
    listened = cast("GuestStatistics", statistics)
    target = BalloonTarget(monitor, DEVICE, listened, 4 * _G, step_bytes=2 << 20)
    assert monitor.was_asked("balloon") == [{"value": 4 * _G}]
    assert not target.is_stepping


def test_a_driver_that_stands_still_is_listened_to_before_it_is_called_stalled() -> None:
    asked = _Asked()
    assert asked.after(1.9, 4 * _G)[0] is ProgressState.MOVING
    assert not asked.is_listened_to()
    assert asked.after(1, 4 * _G)[0] is ProgressState.MOVING
    assert asked.is_listened_to()
    assert asked.after(3, 4 * _G)[0] is ProgressState.STALLED
    assert not asked.is_listened_to()
    assert asked.after(0, 3 * _G)[0] is ProgressState.MOVING, "it goes on after all"


@pytest.mark.parametrize(
    ("answers", "told", "why"),
    [
        ({"query-status": {"status": "paused"}}, {}, "the VM is not running (paused)"),
        (
            {"x-query-virtio-status": {"status": {"statuses": ["VIRTIO_CONFIG_S_ACKNOWLEDGE"]}}},
            {},
            "no driver in the guest serves the balloon device",
        ),
        ({}, {}, "the guest's driver does not answer"),
        ({"x-query-virtio-status": QmpError("")}, {}, "the guest's driver does not answer"),
        ({"x-query-virtio-status": {"status": 7}}, {}, "the guest's driver does not answer"),
        (
            {},
            {"available-memory": 64 << 20, "total-memory": 2 * _G},
            "the guest is out of memory: 64 MiB of 2 GiB are left to it",
        ),
        (
            {},
            {"free-memory": 64 << 20, "total-memory": 2 * _G},
            "the guest is out of memory: 64 MiB of 2 GiB are left to it",
        ),
        (
            {},
            {"available-memory": _G, "free-memory": 0, "total-memory": 2 * _G},
            "the guest's driver stopped there, with 1 GiB available",
        ),
        ({}, {"major-faults": 7}, "the guest's driver stopped there, with 0 B available"),
    ],
)
def test_what_stands_in_the_way_is_said(
    answers: dict[str, object], told: dict[str, int], why: str
) -> None:
    asked = _Asked()
    asked.monitor.answers |= answers
    asked.told = told
    assert asked.after(6, 4 * _G) == (ProgressState.STALLED, why)


def test_a_stop_of_ours_is_its_own_reason_unless_it_is_there_anyway() -> None:
    asked = _Asked()
    asked.target.stop("too much is broken")
    assert asked.after(60, 3 * _G) == (ProgressState.STOPPED, "too much is broken")
    assert asked.after(0, _G) == (ProgressState.REACHED, "")


def test_a_monitor_that_stops_telling_is_no_progress() -> None:
    asked = _Asked()
    assert asked.after(1, None)[0] is ProgressState.MOVING
    assert asked.after(6, None)[0] is ProgressState.STALLED
    asked.monitor.answers["query-status"] = []
    with pytest.raises(QmpError, match="query-status"):
        asked.after(1, None)
