# SPDX-License-Identifier: GPL-2.0-or-later
"""What hostile input did once, and does not any more."""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from uffdballoon.daemon.protocol import decode_answer, decode_object
from uffdballoon.errors import ControlError, QmpError, UsageError
from uffdballoon.host.procfs import parse_file_system, parse_maps, read_mappings
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.fragments import fragments_of
from uffdballoon.model.recording import FORMAT, Recording
from uffdballoon.model.records.status import Status
from uffdballoon.model.sizes import parse_size
from uffdballoon.vmm.qemu.answers import parse_ramblock
from uffdballoon.vmm.qemu.asking import collect, vcpu_tids
from uffdballoon.vmm.qemu.balloon import find_balloon
from uffdballoon.vmm.qemu.cmdline import parse_cmdline
from uffdballoon.vmm.qemu.events import read_event

if TYPE_CHECKING:
    from pathlib import Path

_FORGED = "7f1000000000-7f1000001000 rw-p 00000000 00:00 0 /forged"


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_file_name_cannot_forge_a_line_of_maps(end: str) -> None:
    line = f"7f0000000000-7f0000001000 rw-s 00000000 00:2e 7 /tmp/a{end}{_FORGED}"
    assert len(parse_maps(f"{line}\n")) <= 1


def test_a_mapped_file_of_that_name_is_one_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a\r7f1000000000-7f1000001000 rw-p 00000000 00:00 0 "
    path.write_bytes(bytes(PAGE_BYTES))

    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, PAGE_BYTES):
        os.close(fd)
        spans = [mapping.span.start for mapping in read_mappings(os.getpid())]
    assert 0x7F1000000000 not in spans


def test_a_mount_without_a_type_is_of_none() -> None:
    (mapping,) = parse_maps("7f0000000000-7f0000001000 rw-s 00000000 00:01 7 /x")
    assert parse_file_system("22 1 0:1 / /x rw -\n", mapping) == ""


def test_thousands_of_digits_are_no_size() -> None:
    with pytest.raises(UsageError):
        parse_size("9" * 5000)
    assert parse_cmdline(["-m", "9" * 5000]).ram_bytes is None


def test_a_line_of_blanks_is_passed_over_in_no_time() -> None:
    assert parse_ramblock(("a" + " " * 200_000) * 2) == ()


def test_a_run_of_any_length_is_cut_up_in_no_time() -> None:
    fragments = fragments_of([(3, 1 << 50)])
    assert sum(count << order for order, count in fragments.orders.items()) == 1 << 50
    vast = {"format": FORMAT, "ram_bytes": 1 << 62, "runs": [[0, 1 << 50]]}
    assert Recording.parse(vast).tiled(1 << 40).pages == 1 << 50


def test_pages_beyond_any_address_space_are_no_recording() -> None:
    for runs in ([[10**4299, 1]], [[0, 10**4299]]):
        with pytest.raises(UsageError):
            Recording.parse({"format": FORMAT, "ram_bytes": 1 << 30, "runs": runs})


@pytest.mark.parametrize(
    "line",
    [
        b"[]\n",
        b"7\n",
        b"\xff\n",
        b'{"ok":false,"error":[1]}\n',
        b'{"ok":false,"error":{"errno":[]}}\n',
    ],
)
def test_an_answer_that_is_none_is_named_so(line: bytes) -> None:
    with pytest.raises(ControlError) as refused:
        decode_answer(line, Status)
    assert str(refused.value)


def test_a_line_of_events_that_is_none_is_named_so() -> None:
    with pytest.raises(ControlError):
        decode_object(b"[" * 100_000)


class _Script:
    """A monitor that answers what it was given, one after the other."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401
        assert command or arguments
        return self._answers.pop(0)

    def hmp(self, line: str) -> str:
        return str(self.execute(line))


def test_a_monitor_that_talks_nonsense_is_a_named_error() -> None:
    with pytest.raises(QmpError):
        collect(_Script("", [], {"qemu": 7}))
    with pytest.raises(QmpError):
        vcpu_tids(_Script([{"thread-id": 1 << 40, "cpu-index": 0}]))
    with pytest.raises(QmpError):
        find_balloon(_Script([{"type": "virtio-balloon-pci"}]))
    with pytest.raises(QmpError):
        read_event({"event": "BALLOON_CHANGE", "data": []})


@pytest.mark.parametrize("seconds", [-1, 0, 1 << 60])
def test_a_reset_at_a_time_that_cannot_be_is_now(seconds: int) -> None:
    before = time.monotonic_ns()
    event = {"event": "RESET", "timestamp": {"seconds": seconds, "microseconds": seconds}}
    at_ns = read_event(event).reset_ns
    assert at_ns is not None
    assert before <= at_ns <= time.monotonic_ns()
