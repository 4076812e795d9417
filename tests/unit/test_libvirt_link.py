# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt as we call it, with a module in its place that a test plays."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from uffdballoon.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_URI = "qemu:///system"
_UUID = "7ca9bcf5-71f9-465c-a17f-016e94873c1d"


class PlayedError(Exception):
    pass


class Played:
    """Both modules of the binding, one domain, and its QEMU, which is this process."""

    libvirtError = PlayedError  # noqa: N815 - libvirt's name

    def __init__(self) -> None:
        self.is_this_process = True
        self.refuses = ""
        self.on_close: Callable[..., None] | None = None
        self.hear: Callable[..., None] | None = None
        self.commands: list[dict[str, Any]] = []
        self.closed = 0
        self.given: list[int] = []

    def open(self, uri: str) -> Played:
        assert uri == _URI
        self._refuse()
        return self

    def setKeepAlive(self, interval: int, count: int) -> None:  # noqa: N802
        assert interval > 0
        assert count > 0

    def registerCloseCallback(self, called: Callable[..., None], _: object) -> None:  # noqa: N802
        self.on_close = called

    def unregisterCloseCallback(self) -> None:  # noqa: N802
        self.on_close = None

    def lookupByUUIDString(self, uuid: str) -> str:  # noqa: N802
        if uuid != _UUID:
            raise PlayedError("no domain with matching uuid")
        return "domain"

    def close(self) -> None:
        self.closed += 1

    def qemuMonitorEventRegister(self, *arguments: Any) -> None:  # noqa: ANN401, N802
        self.hear = arguments[3]

    def qemuMonitorCommandWithFiles(  # noqa: N802
        self, _domain: str, text: str, files: list[int], _flags: int
    ) -> tuple[str, list[int]]:
        self.given = [os.dup(fd) for fd in files if self.is_this_process]
        self.commands.append(json.loads(text))
        fd = self.given[0] if self.given else 0
        return json.dumps({"return": {"fd": fd, "fdset-id": 1}, "id": "libvirt-1"}), []

    def qemuMonitorCommand(self, _domain: str, text: str, _flags: int) -> str:  # noqa: N802
        self._refuse()
        command = json.loads(text)
        self.commands.append(command)
        if command["execute"] == "remove-fd":
            for fd in self.given:
                os.close(fd)
        return json.dumps({"return": {}, "id": "libvirt-2"})

    def _refuse(self) -> None:
        if self.refuses:
            raise PlayedError(self.refuses)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    played = Played()
    monkeypatch.setitem(sys.modules, "libvirt", played)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", played)
    name = "uffdballoon.vmm.qemu.libvirt_link"
    sys.modules.pop(name, None)
    yield played
    sys.modules.pop(name, None)


def _link(played: Played, uuid: str = _UUID) -> SimpleNamespace:
    """Make a link, beside what it tells."""
    module = importlib.import_module("uffdballoon.vmm.qemu.libvirt_link")
    events: list[dict[str, Any]] = []
    lost: list[bool] = []
    link = module.Link(
        _URI, uuid, os.getpid(), on_event=events.append, on_lost=lambda: lost.append(True)
    )
    assert module.libvirt is played
    return SimpleNamespace(link=link, events=events, lost=lost)


def _count_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_domain_is_known_by_a_file_that_it_is_given_and_gives_back(played: Played) -> None:
    before = _count_fds()
    _link(played).link.connect()
    added, removed = played.commands
    assert (added["execute"], removed["execute"]) == ("add-fd", "remove-fd")
    assert added["arguments"] == removed["arguments"]
    assert _count_fds() == before


def test_a_domain_that_is_another_process_is_refused(played: Played) -> None:
    played.is_this_process = False
    link = _link(played).link
    with pytest.raises(QmpError, match="is another process"):
        link.connect()
    assert played.commands[-1]["execute"] == "remove-fd"
    assert played.closed == 1
    assert "error" in link.ask({"execute": "query-status"})
    assert played.hear is None


def test_no_libvirt_and_no_domain_are_refused(played: Played) -> None:
    played.refuses = "Failed to connect socket"
    with pytest.raises(QmpError, match="Failed to connect socket"):
        _link(played).link.connect()
    played.refuses = ""
    with pytest.raises(QmpError, match="no domain with matching uuid"):
        _link(played, uuid="another").link.connect()


def test_an_answer_has_no_id_of_libvirts_and_a_refusal_is_an_answer(played: Played) -> None:
    link = _link(played).link
    link.connect()
    assert link.ask({"execute": "query-status"}) == {"return": {}}
    played.refuses = "cannot acquire state change lock"
    answer = link.ask({"execute": "query-status"})
    assert "cannot acquire state change lock" in answer["error"]["desc"]


def test_a_file_is_given_to_qemu_with_its_command(played: Played) -> None:
    link = _link(played).link
    link.connect()
    before = _count_fds()
    file = os.memfd_create("given")
    assert link.ask({"execute": "getfd"}, [file]) == {
        "return": {"fd": played.given[0], "fdset-id": 1}
    }
    assert os.path.samestat(os.fstat(played.given[0]), os.fstat(file))
    os.close(file)
    link.ask({"execute": "remove-fd"})
    assert _count_fds() == before


def test_an_event_is_told_as_qemu_does(played: Played) -> None:
    linked = _link(played)
    linked.link.connect()
    assert played.hear is not None
    played.hear(None, None, "BALLOON_CHANGE", 5, 7, '{"actual": 4096}', None)
    played.hear(None, None, "RESUME", 6, 0, None, None)
    first, second = linked.events
    assert list(first) == ["timestamp", "event", "data"]
    assert first["timestamp"] == {"seconds": 5, "microseconds": 7}
    assert first["data"] == {"actual": 4096}
    assert second == {"timestamp": {"seconds": 6, "microseconds": 0}, "event": "RESUME"}


def test_a_libvirt_that_hangs_up_is_told_and_connected_to_again(played: Played) -> None:
    linked = _link(played)
    linked.link.connect()
    assert played.on_close is not None
    played.on_close(None, 1, None)
    assert linked.lost == [True]
    linked.link.connect()
    assert played.closed == 1
    assert linked.link.ask({"execute": "query-status"}) == {"return": {}}
