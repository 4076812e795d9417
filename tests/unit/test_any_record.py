# SPDX-License-Identifier: GPL-2.0-or-later
"""Every record comes back from JSON as it was, whatever is in it; keys are its fields' names."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from tests.support.any_record import any_record, record_types
from uffdballoon.cli.text.events import event_line
from uffdballoon.cli.text.status import status_rows
from uffdballoon.daemon.protocol import decode_answer, encode
from uffdballoon.errors import ControlError
from uffdballoon.model.records.encoding import parse, read, to_json, to_line
from uffdballoon.model.records.events import Notice, TouchEvent, read_event
from uffdballoon.model.records.status import Status

RECORDS = record_types()


@pytest.mark.parametrize("kind", RECORDS)
@settings(max_examples=10)
@given(data=st.data())
def test_a_record_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    record = data.draw(any_record(kind))
    for text in (to_json(record), to_json(record, indent=2), to_line(record)):
        assert text.isascii()
        assert read(parse(text), kind) == record


@pytest.mark.parametrize("kind", RECORDS)
@settings(max_examples=5)
@given(data=st.data())
def test_its_keys_are_its_fields_in_their_order(kind: type, data: st.DataObject) -> None:
    record = data.draw(any_record(kind))
    names = [field.name for field in dataclasses.fields(kind)]
    there = [name for name in names if getattr(record, name) is not UNSET]
    assert list(json.loads(to_json(record))) == there


@pytest.mark.parametrize("value", [None, 7, "x", [], True, [{}]])
def test_what_is_no_object_is_no_record(value: object) -> None:
    for kind in RECORDS:
        with pytest.raises(ControlError, match="not known here"):
            read(value, kind)


@pytest.mark.parametrize("kind", RECORDS)
@settings(max_examples=3)
@given(data=st.data())
def test_without_a_key_it_is_refused_unless_that_may_be_left_out(
    kind: type, data: st.DataObject
) -> None:
    whole = json.loads(to_json(data.draw(any_record(kind))))
    for field in dataclasses.fields(kind):
        part = {key: value for key, value in whole.items() if key != field.name}
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed:
            with pytest.raises(ControlError, match="not known here"):
                read(part, kind)
        else:
            assert isinstance(read(part, kind), kind)


@settings(max_examples=30)
@given(st.one_of(any_record(TouchEvent), any_record(Notice)))
def test_the_two_kinds_of_events_are_told_apart(event: TouchEvent | Notice) -> None:
    assert read_event(parse(to_line(event))) == event


@settings(max_examples=20)
@given(any_record(Status))
def test_a_status_goes_over_the_wire_and_is_written_for_a_person(status: Status) -> None:
    assert decode_answer(encode({"ok": True, "result": status}), Status) == status
    rows = status_rows(status)
    assert all(name and isinstance(value, str) for name, value in rows)
    assert len([name for name, _ in rows if name == "held"]) == len(status.held)


_TIMES = st.integers(0, 4 * 10**18)  # until the year 2096


@settings(max_examples=50)
@given(
    event=st.one_of(any_record(TouchEvent), any_record(Notice)),
    time_ns=_TIMES,
)
def test_an_event_is_one_line_that_begins_with_its_time_and_kind(
    event: TouchEvent | Notice, time_ns: int
) -> None:
    event = dataclasses.replace(event, time_ns=time_ns)
    clock, kind = event_line(event).split()[:2]
    assert len(clock) == len("1970-01-01T00:00:00.000000Z")
    assert kind.rstrip(":") == event.kind.value
