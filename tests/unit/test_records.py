# SPDX-License-Identifier: GPL-2.0-or-later
"""Records as JSON and text: what they were recorded as before there were records, to the byte."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.any_record import record_types
from tools.json_docs import PLACE, render
from uffdballoon.cli.text.events import event_line
from uffdballoon.cli.text.status import status_rows
from uffdballoon.daemon.protocol import decode_answer, encode, error_message
from uffdballoon.errors import ControlError, RangeError
from uffdballoon.model.notice import notice
from uffdballoon.model.records.balloon import BalloonProgress, Verification
from uffdballoon.model.records.changes import (
    ChangeReport,
    Detaching,
    Refusal,
    Released,
    StopTimes,
)
from uffdballoon.model.records.encoding import parse, read, to_json, to_line
from uffdballoon.model.records.events import EventKind, Notice, TouchEvent, read_event
from uffdballoon.model.records.host import DoctorReport
from uffdballoon.model.records.maps import MapReport, WireMap
from uffdballoon.model.records.spans import Span
from uffdballoon.model.records.statistics import RecordedBalloon, Simulation, Statistics
from uffdballoon.model.records.status import Status
from uffdballoon.model.records.target import ListedTarget, TargetFacts
from uffdballoon.model.touch import Action, Verdict

_SAMPLES = Path(__file__).parents[1] / "data" / "json"
_SHAPES: dict[str, Any] = {
    "deflate": ChangeReport,
    "doctor": DoctorReport,
    "inflate": ChangeReport,
    "inflate-node": ChangeReport,
    "inspect": TargetFacts,
    "inspect-monitor": TargetFacts,
    "list": tuple[ListedTarget, ...],
    "map": MapReport,
    "recording": RecordedBalloon,
    "set": BalloonProgress,
    "simulate": Simulation,
    "stats": Statistics,
    "status-grace": Status,
    "status-held": Status,
    "status-without-monitor": Status,
    "verify": Verification,
    "wire-detach": Detaching,
    "wire-map": WireMap,
    "wire-progress": BalloonProgress,
    "wire-release": Released,
}


def _sample(name: str) -> Any:  # noqa: ANN401 - any JSON
    return json.loads((_SAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def _with_unknown_keys(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Add a key to each object, as a later version may; not where keys are values' names."""
    if isinstance(value, list):
        return [_with_unknown_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    more = {key: _with_unknown_keys(item) for key, item in value.items()}
    is_record = bool(value) and not all(type(item) is int for item in value.values())
    return more | ({"of a later version": {"x": [1]}} if is_record else {})


def _status(name: str) -> Status:
    return read(_sample(name), Status)


def test_each_sample_has_a_shape() -> None:
    others = {"events", "wire-error"}
    assert {path.stem for path in _SAMPLES.glob("*.json")} == set(_SHAPES) | others


@pytest.mark.parametrize("name", _SHAPES)
def test_keys_and_values_are_those_of_before_there_were_records(name: str) -> None:
    sample = _sample(name)
    assert json.loads(to_json(read(sample, _SHAPES[name]))) == sample


@pytest.mark.parametrize("name", _SHAPES)
def test_a_record_comes_back_as_it_was_sent(name: str) -> None:
    sent = read(_sample(name), _SHAPES[name])
    assert decode_answer(encode({"ok": True, "result": sent}), _SHAPES[name]) == sent


@pytest.mark.parametrize("name", _SHAPES)
def test_keys_of_a_later_version_are_left_out(name: str) -> None:
    sample = _sample(name)
    later = _with_unknown_keys(sample)
    assert later != sample or name in {"wire-detach", "wire-release"}
    assert read(later, _SHAPES[name]) == read(sample, _SHAPES[name])


def test_events_are_those_of_before_there_wererecord_types() -> None:
    sample = _sample("events")
    events = [read_event(line) for line in sample]
    assert [json.loads(to_json(event)) for event in events] == sample
    assert [list(json.loads(to_json(event))) for event in events] == [list(e) for e in sample]
    assert {type(event) for event in events} == {TouchEvent, Notice}
    assert [read_event(_with_unknown_keys(line)) for line in sample] == events
    assert {e.verdict for e in events} == {Verdict.GRANTED, Verdict.VIOLATION, None}


def test_a_refusal_keeps_its_keys_and_its_name() -> None:
    sample = _sample("wire-error")
    told = {**sample, "error": read(sample["error"], Refusal)}
    assert json.loads(to_json(told)) == sample
    error = RangeError("no", why="because", hint="do", pid=7, errno=22)
    with pytest.raises(RangeError) as raised:
        decode_answer(to_line(error_message(error)), Status)
    assert (raised.value.what, raised.value.why, raised.value.hint) == ("no", "because", "do")
    assert (raised.value.pid, raised.value.errno) == (7, 22)


@pytest.mark.parametrize("name", ["status-grace", "status-held", "status-without-monitor"])
def test_the_text_of_a_status_is_that_of_before_there_were_records(name: str) -> None:
    told = "".join(f"{key}\t{value}\n" for key, value in status_rows(_status(name)))
    assert told == (_SAMPLES / f"{name}.txt").read_text(encoding="utf-8")


def test_the_text_of_events_is_that_of_before_there_wererecord_types() -> None:
    told = "".join(f"{event_line(read_event(line))}\n" for line in _sample("events"))
    assert told == (_SAMPLES / "events.txt").read_text(encoding="utf-8")


def test_the_text_tells_what_the_samples_have_not() -> None:
    status = _status("status-held")
    (held,) = status.held
    status = dataclasses.replace(
        status,
        ram_change_bytes=64 << 20,
        cut_huge_mappings=3,
        surveyed_age_s=12.4,
        held=(dataclasses.replace(held, gpa=None, action=Action.THROTTLE, left_s=0.25),),
        reclaim=dataclasses.replace(status.reclaim, pinned_bytes=1 << 20, resident_bytes=4096),
        khugepaged=dataclasses.replace(status.khugepaged, unguarded_blocks=2),
        fragmentation=dataclasses.replace(status.fragmentation, stopped_at_bytes=1 << 30),
        observed=dataclasses.replace(status.observed, lost_records=5, resyncs=1),
        balloon=dataclasses.replace(status.balloon, unaccounted_bytes=8192),
    )
    text = "\n".join(map(" ".join, status_rows(status)))
    for words in (
        "64 MiB came and are not enforced",
        "3 of them cut from huge pages",
        "by throttle, write of gpa ?, for 0.2 s, for 0.2 s more",
        "1 MiB kept by huge pages; 4 KiB there; looked at 12 s ago",
        "2 are not armed",
        "stopped with 1 GiB left",
        "lost 5 records, 1 times",
        "8 KiB of its balloon not known",
    ):
        assert words in text


def test_a_notice_has_the_keys_of_every_event_and_what_it_alone_tells() -> None:
    plain = json.loads(to_json(notice(EventKind.RESET)))
    touch = ["gpa", "size", "vcpu", "tid", "access", "verdict", "action"]
    assert list(plain) == ["time_ns", "kind", *touch]
    assert all(plain[key] is None for key in touch)
    more = json.loads(to_json(notice(EventKind.FRAGMENTATION_LIMIT, "so", node=None, size=4096)))
    assert list(more) == [*plain, "node", "why"]
    assert (more["size"], more["node"], more["why"]) == (4096, None, "so")
    assert event_line(read_event(more)).endswith("fragmentation-limit 4 KiB: so")


def test_reports_of_several_ranges_add_up() -> None:
    one = read(_sample("inflate"), ChangeReport)
    two = read(_sample("inflate-node"), ChangeReport)
    total = ChangeReport.total([one, two])
    assert total.done_bytes == one.done_bytes + two.done_bytes
    assert total.ranges == one.ranges + two.ranges
    assert total.stopped_us == StopTimes(
        count=one.stopped_us.count + two.stopped_us.count,
        max=max(one.stopped_us.max, two.stopped_us.max),
    )
    assert ChangeReport.total([]).stopped_us == StopTimes(count=0, max=0)


@pytest.mark.parametrize(
    "change", [{"state": "asleep"}, {"pid": "4711"}, {"touches": None}, {"actions": {"shout": 1}}]
)
def test_what_no_record_can_hold_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(ControlError) as refused:
        read(_sample("status-held") | change, Status)
    assert "version" in refused.value.why


@pytest.mark.parametrize("value", [None, 7, [], "x", {}, {"verdict": "violation"}])
def test_what_is_no_event_is_refused_by_name(value: object) -> None:
    with pytest.raises(ControlError):
        read_event(value)


def test_a_path_that_is_no_utf8_gets_through() -> None:
    row = ListedTarget(pid=1, exe="/bin/\udcff", machine="pc", ram_bytes=None, attached=False)
    assert to_json(row).isascii()
    assert read(parse(to_json(row)), ListedTarget) == row


def test_numbers_beyond_64_bits_get_through() -> None:
    span = Span(gpa=1 << 80, size=1)
    assert read(parse(to_json(span)), Span) == span


def test_every_field_of_every_record_is_described() -> None:
    for record in record_types():
        hints = typing.get_type_hints(record, include_extras=True)
        for field in dataclasses.fields(record):
            notes = typing.get_args(hints[field.name])
            assert any(isinstance(note, msgspec.Meta) for note in notes), (record, field.name)


def test_every_record_is_frozen_and_slotted() -> None:
    for record in record_types():
        assert record.__dataclass_params__.frozen, record  # type: ignore[attr-defined]
        assert "__slots__" in vars(record), record


def test_every_record_is_in_the_documentation() -> None:
    page = render()
    for record in record_types():
        if record.__name__ not in {"DriverProgress", "MapFacts"}:  # bases of others
            assert f"### {record.__name__}\n" in page


def test_the_documentation_is_what_the_records_say() -> None:
    assert PLACE.read_text(encoding="utf-8") == render(), "run: make json-docs"
