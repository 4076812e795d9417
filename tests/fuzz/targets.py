# SPDX-License-Identifier: GPL-2.0-or-later
"""What is fuzzed, by name: each takes any bytes, and lets only what must not happen out.

What may happen is a value or a named error; what a value must be, its parser's own tests say.
Here it must be one that can be written down and read again.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uffdballoon.cli.ranges import parse_range, ranges_in
from uffdballoon.daemon import requests
from uffdballoon.daemon.protocol import (
    decode_answer,
    decode_object,
    decode_request,
    encode,
    error_message,
)
from uffdballoon.errors import QmpError, UffdballoonError
from uffdballoon.host.procfs import parse_file_system, parse_locked_bytes, parse_maps
from uffdballoon.host.trace import TRACEPOINTS, parse_format
from uffdballoon.lab import host_record
from uffdballoon.model.addresses import Hva
from uffdballoon.model.durations import parse_duration
from uffdballoon.model.granule import Granule
from uffdballoon.model.moments import parse_moment
from uffdballoon.model.ofnodes import MOST_NODES, parse_node_part, parse_of_node
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.ram import Backing, RamBlock
from uffdballoon.model.recording import Recording
from uffdballoon.model.records.encoding import to_json
from uffdballoon.model.records.events import read_event
from uffdballoon.model.records.status import Status
from uffdballoon.model.seccomp import BadProgramError, Call, Fd, answer_of, parse_program
from uffdballoon.model.sizes import parse_address, parse_size
from uffdballoon.model.tracing import read_trace, replay, write_trace
from uffdballoon.vmm.qemu.answers import parse_gpa2hva, parse_mtree, parse_ramblock
from uffdballoon.vmm.qemu.asking import collect
from uffdballoon.vmm.qemu.balloon import (
    BalloonTarget,
    actual_bytes,
    find_balloon,
)
from uffdballoon.vmm.qemu.cmdline import parse_cmdline
from uffdballoon.vmm.qemu.events import read_event as read_monitor_event
from uffdballoon.vmm.qemu.lines import LineSplitter, read_answer, read_message
from uffdballoon.vmm.qemu.placement import place, why_unclear
from uffdballoon.vmm.qemu.statistics import GuestStatistics
from uffdballoon.vmm.qemu.suitability import Evidence, devices_of, encryption_of, judge

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST_BYTES = 1 << 62
_MAPPING = parse_maps("7f0000000000-7f0000200000 rw-s 00000000 00:01 1024 /memfd:ram (deleted)")[0]
TARGETS: dict[str, Callable[[bytes], None]] = {}


def _target(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        try:
            function(data)
        except UffdballoonError as error:
            encode(error_message(error))
            str(error)

    TARGETS[function.__name__.replace("_", "-")] = run
    return function


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@_target
def maps(data: bytes) -> None:
    for mapping in parse_maps(_text(data)):
        assert mapping.shared in (True, False)
        parse_file_system("", mapping)


@_target
def process_status(data: bytes) -> None:
    assert parse_locked_bytes(_text(data)) >= 0


@_target
def mountinfo(data: bytes) -> None:
    assert "\n" not in parse_file_system(_text(data), _MAPPING)


@_target
def mtree(data: bytes) -> None:
    parse_mtree(_text(data))


@_target
def ramblock(data: bytes) -> None:
    for block in parse_ramblock(_text(data)):
        assert block.page_bytes >= 0


@_target
def gpa2hva(data: bytes) -> None:
    parse_gpa2hva(_text(data))


@_target
def tracepoint(data: bytes) -> None:
    for name, fields in TRACEPOINTS.items():
        with contextlib.suppress(UffdballoonError):
            assert parse_format(_text(data), name, fields) >= 0


@_target
def mount_points(data: bytes) -> None:
    host_record.mount_points(_text(data), "tmpfs")


@_target
def host_changes(data: bytes) -> None:
    record = host_record.parse(_text(data))
    assert host_record.parse(host_record.encode(record)) == record


@_target
def seccomp_filter(data: bytes) -> None:
    with contextlib.suppress(BadProgramError):
        str(answer_of([parse_program(data)], Call("close(2)", 3, (Fd(),))))


@_target
def policy(data: bytes) -> None:
    read = parse_policy(_text(data))
    assert read.rungs[-1].may_be_last
    assert parse_policy(str(read)) == read


@_target
def size(data: bytes) -> None:
    assert 0 <= parse_size(_text(data)) <= _LARGEST_BYTES


@_target
def of_node(data: bytes) -> None:
    node, size_bytes = parse_of_node(_text(data), parse_size)
    assert 0 <= node < MOST_NODES
    assert 0 <= size_bytes <= _LARGEST_BYTES


@_target
def node_part(data: bytes) -> None:
    node, size_bytes = parse_node_part(_text(data))
    assert 0 <= node < MOST_NODES
    assert size_bytes is None or 0 <= size_bytes <= _LARGEST_BYTES


@_target
def given_range(data: bytes) -> None:
    assert 0 <= parse_range(_text(data)).size_bytes <= _LARGEST_BYTES


@_target
def file_of_ranges(data: bytes) -> None:
    for span in ranges_in(_text(data), "file", Granule.SMALL):
        assert span.size_bytes > 0


@_target
def moment(data: bytes) -> None:
    assert parse_moment(_text(data), 10**18) <= 10**21


@_target
def duration(data: bytes) -> None:
    assert parse_duration(_text(data)) > 0


@_target
def address(data: bytes) -> None:
    assert 0 <= parse_address(_text(data)) <= _LARGEST_BYTES


@_target
def control_request(data: bytes) -> None:
    message = decode_request(data)
    assert isinstance(message["verb"], str)
    for span in requests.ranges_of(message, requests.granule_of(message)):
        assert span.size_bytes >= 0
        assert str(span)


@_target
def control_answer(data: bytes) -> None:
    with contextlib.suppress(UffdballoonError):
        read_event(decode_object(data))
    decode_answer(data, Status)


@_target
def recording(data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    read = Recording.parse(value)
    assert Recording.parse(json.loads(to_json(read.record()))) == read
    to_json(read.tiled(1 << 40).counts())


@_target
def trace(data: bytes) -> None:
    read = read_trace(data.decode("utf-8", "replace"))
    assert read_trace(write_trace(read)) == read
    for part in replay(read):
        to_json(part.fragments.counts())


@_target
def cmdline(data: bytes) -> None:
    arguments = data.decode("utf-8", "surrogateescape").split("\0")
    options = parse_cmdline(arguments)
    assert options.ram_bytes is None or options.ram_bytes >= 0
    assert options.is_q35 in (True, False)
    evidence = Evidence(drivers=devices_of(arguments), encrypted=encryption_of(arguments))
    assert all(finding.sentence for finding in judge(evidence))
    if not why_unclear(options):
        size_bytes = options.ram_bytes or 0
        block = RamBlock("ram", Hva(0), size_bytes, 4096, Backing.ANON, shared=False)
        assert sum(s.size_bytes for s in place(options, [block])) <= size_bytes


@_target
def config(data: bytes) -> None:
    parse_cmdline(["qemu", "-readconfig", "x"], lambda _: _text(data))


@dataclass
class _Script:
    """A monitor that answers what it was given, one after the other, and in the end refuses."""

    answers: list[Any] = field(default_factory=list)

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401
        del arguments
        if not self.answers:
            raise QmpError(f"the monitor refused {command}")
        return self.answers.pop(0)

    def hmp(self, line: str) -> str:
        return str(self.execute(line))


@_target
def monitor_lines(data: bytes) -> None:
    splitter, cut = LineSplitter(1 << 10), data[0] if data else 0
    whole = list(LineSplitter().feed(data))
    with contextlib.suppress(QmpError):
        assert [*splitter.feed(data[:cut]), *splitter.feed(data[cut:])] == whole
    for line in whole:
        with contextlib.suppress(QmpError):
            read_answer(read_message(line), "query-status")


@_target
def monitor(data: bytes) -> None:
    try:
        answers = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(answers, list):
        return
    with contextlib.suppress(UffdballoonError):
        collect(_Script(list(answers)))
    for answer in answers:
        if isinstance(answer, dict):
            with contextlib.suppress(UffdballoonError):
                read_monitor_event({"event": "RESET", **answer})
    actual_bytes(_Script(list(answers)))
    script = _Script(list(answers))
    device = find_balloon(script)
    if device is not None:
        shown = GuestStatistics(_Script(script.answers[:]), device.path).show()
        to_json(shown)
        statistics = GuestStatistics(script, device.path)
        clock = iter(range(0, 1000, 10))
        asked = BalloonTarget(script, device, statistics, 1 << 20, clock=lambda: float(next(clock)))
        for _ in range(3):
            to_json(asked.progress())
