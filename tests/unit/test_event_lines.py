# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kind of event as a line for a person, to the letter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uffdballoon.cli.text.events import event_line
from uffdballoon.model.records.events import EventKind, Notice, TouchEvent
from uffdballoon.model.touch import Access, Action, Role, Verdict

TIME_NS = ((13 * 60 + 37) * 60 + 5) * 10**9 + 250_000_000
CLOCK = "1970-01-01T13:37:05.250000Z"
TOUCH = TouchEvent(
    time_ns=TIME_NS,
    kind=EventKind.VIOLATION,
    gpa=0x8000000,
    size=4096,
    vcpu=1,
    tid=4712,
    access=Access.WRITE,
    verdict=Verdict.VIOLATION,
    action=Action.PAUSE,
    role=Role.VCPU,
    sequence=7,
    answer_ns=1500,
)
_TOUCHES = {EventKind.ORDINARY, EventKind.GRANTED, EventKind.VIOLATION, EventKind.NO_MEMORY}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (TOUCH, "violation write gpa 0x8000000 size 4096 vcpu 1 -> pause"),
        (
            replace(TOUCH, kind=EventKind.GRANTED, access=Access.READ, action=Action.GRANT),
            "granted read gpa 0x8000000 size 4096 vcpu 1 -> grant",
        ),
        (
            replace(TOUCH, vcpu=None, role=Role.DEVICE_WRITER, action=Action.KILL),
            "violation write gpa 0x8000000 size 4096 tid 4712 -> kill",
        ),
        (
            replace(TOUCH, kind=EventKind.NO_MEMORY, gpa=None, action=Action.NO_MEMORY),
            "no-memory write gpa ? size 4096 vcpu 1 -> no-memory",
        ),
        (
            replace(TOUCH, vcpu=0, size=2 << 20, action=Action.ZERO_READ),
            "violation write gpa 0x8000000 size 2097152 vcpu 0 -> zero-read",
        ),
    ],
)
def test_a_touch_says_who_did_what_where_and_what_was_done(event: TouchEvent, line: str) -> None:
    assert event_line(event) == f"{CLOCK} {line}"


@pytest.mark.parametrize("kind", [kind for kind in EventKind if kind not in _TOUCHES])
def test_a_notice_says_its_kind_and_only_what_it_has(kind: EventKind) -> None:
    plain = Notice(time_ns=TIME_NS, kind=kind)
    assert event_line(plain) == f"{CLOCK} {kind.value}"
    assert event_line(replace(plain, size=0)) == f"{CLOCK} {kind.value} 0 B"
    assert event_line(replace(plain, why="so")) == f"{CLOCK} {kind.value}: so"
    full = replace(plain, size=64 << 20, why="so", node=1, count=3, actual_bytes=1)
    assert event_line(full) == f"{CLOCK} {kind.value} 64 MiB: so"


@pytest.mark.parametrize("action", Action)
def test_every_action_has_its_word(action: Action) -> None:
    assert event_line(replace(TOUCH, action=action)).endswith(f"-> {action.value}")
