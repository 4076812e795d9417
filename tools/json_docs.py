# SPDX-License-Identifier: GPL-2.0-or-later
"""Write docs/json.md from the records: ``python -m tools.json_docs``, or ``make json-docs``."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from uffdballoon.model.records.balloon import BalloonProgress, LimitChange, Verification
from uffdballoon.model.records.changes import (
    ChangeReport,
    Detaching,
    InflatePreview,
    Refusal,
    Released,
    TakenUp,
    Yielded,
)
from uffdballoon.model.records.events import Notice, TouchEvent
from uffdballoon.model.records.host import DoctorReport
from uffdballoon.model.records.maps import MapReport, WireMap
from uffdballoon.model.records.policy import PolicyChange
from uffdballoon.model.records.statistics import (
    RecordedBalloon,
    RecordedChange,
    RecordedTrace,
    Simulation,
    Statistics,
    TracedGuest,
)
from uffdballoon.model.records.status import Status
from uffdballoon.model.records.target import ListedTarget, TargetFacts

PLACE = Path(__file__).resolve().parents[1] / "docs" / "json.md"

_PREAMBLE = """\
# JSON

<!-- Made by `make json-docs` from uffdballoon/model/records/. Do not edit. -->

Everything that `--json` prints, and what goes over the control socket, but for `bench` and
`scenario list`. These keys are what a version number speaks of: none goes, or means something
else, within a major version. More may come, so leave out what you do not know. A number is an
integer unless it says otherwise. A key that may be absent says so.

The control socket is `/run/uffdballoon/PID.sock`, of another user than root
`uffdballoon/PID.sock` in `$XDG_RUNTIME_DIR` or else `/run/user/UID`. A line of JSON goes each
way: `{"v": 1, "verb": "status"}`, and `{"ok": true, "result": ...}` or
`{"ok": false, "error": ...}`, where the error is a
[Refusal](#refusal). What else a request has:

| verb | keys of the request | result |
| --- | --- | --- |
| `status`, `stats`, `verify` | | as of the command |
| `events` | | a list of the last 1000 events |
| `follow` | | null, then a line for each event, the past ones first, until a side hangs up |
| `inflate` | `ranges`, `gpa` and `size`, or `nodes`, pairs of node and size (null: all \
of it); `granule`, `guest_agreed` | \
[ChangeReport](#changereport) |
| `inflate` | the same with `dry_run`: true | [InflatePreview](#inflatepreview) |
| `deflate` | `ranges`, `gpa` and `size`, or `nodes`; `granule` | [ChangeReport](#changereport) |
| `deflate` | `all`: true | [ChangeReport](#changereport) |
| `release` | `tid`, or none for all | [Released](#released) |
| `yield` | `for_ns`, up to 24 hours | [Yielded](#yielded) |
| `take-up` | | [TakenUp](#takenup) |
| `set` | `size`, what the guest shall have left | [BalloonProgress](#balloonprogress) |
| `progress` | | [BalloonProgress](#balloonprogress) |
| `policy` | what is to change of [PolicyInForce](#policyinforce) | [PolicyChange](#policychange) |
| `limit` | `size`, what the guest may have of its RAM | [LimitChange](#limitchange) |
| `runs` | | [RecordedBalloon](#recordedballoon) |
| `changes` | | [RecordedTrace](#recordedtrace) |
| `ranges` | `most`, how many are told | [BalloonRanges](#balloonranges) |
| `map` | `recent_s` | [WireMap](#wiremap) |
| `detach` | | [Detaching](#detaching), and then the manager ends |

`ranges` of a request is a list of 1 to 1000 pairs of gpa and size, taken or refused as one.
The answer to `follow` has beside its result `past`, how many of the lines after it are of before.
"""


class _Section(NamedTuple):
    heading: str
    text: str
    records: tuple[type, ...]


_SECTIONS = (
    _Section("`status PID --json`", "", (Status,)),
    _Section(
        "`events PID --json`, `attach --events FILE`",
        "A line for each event, in one of two shapes: `verdict` is null in a notice.",
        (TouchEvent, Notice),
    ),
    _Section(
        "`inflate --json`, `deflate --json`",
        "With `--dry-run` the second.",
        (ChangeReport, InflatePreview),
    ),
    _Section("`set PID --balloon SIZE --json`", "", (BalloonProgress,)),
    _Section("`policy PID --json`", "", (PolicyChange,)),
    _Section("`limit PID SIZE --json`", "", (LimitChange,)),
    _Section("`verify PID --json`", "", (Verification,)),
    _Section("`map PID --json`", "", (MapReport,)),
    _Section(
        "`stats --json`",
        "Of a PID the first, with `--simulate` the second; `--record` writes the third. "
        "`--trace` writes a line of the fourth, and then lines of the fifth.",
        (Statistics, Simulation, RecordedBalloon, TracedGuest, RecordedChange),
    ),
    _Section("`inspect PID --json`", "", (TargetFacts,)),
    _Section("`list --json`", "A list of these.", (ListedTarget,)),
    _Section("`doctor --json`", "", (DoctorReport,)),
    _Section(
        "The control socket alone",
        "",
        (Refusal, Released, Yielded, TakenUp, Detaching, WireMap, RecordedTrace),
    ),
)


def render() -> str:
    """Return the text of docs/json.md."""
    page = _Page()
    for section in _SECTIONS:
        page.add_section(section)
    page.add_words()
    return page.text()


class _Page:
    """The page as far as it is written, with the records and words that it has explained."""

    def __init__(self) -> None:
        self._parts = [_PREAMBLE]
        self._explained: set[type] = set()
        self._words: dict[str, type[enum.Enum]] = {}

    def add_section(self, section: _Section) -> None:
        self._parts.append(
            f"## {section.heading}\n" + (f"\n{section.text}\n" if section.text else "")
        )
        waiting = list(section.records)
        while waiting:
            record = waiting.pop(0)
            if record not in self._explained:
                self._explained.add(record)
                self._parts.append(self._table(record, waiting))

    def add_words(self) -> None:
        self._parts.append("## Words\n")
        for name, kind in sorted(self._words.items()):
            words = ", ".join(f"`{member.value}`" for member in kind)
            self._parts.append(f"### {name}\n\n{inspect.getdoc(kind) or ''}\n\n{words}\n")

    def text(self) -> str:
        return "\n".join(self._parts)

    def _table(self, record: type, waiting: list[type]) -> str:
        hints = typing.get_type_hints(record, include_extras=True)
        rows = [
            f"| `{field.name}` | {self._of(hints[field.name], waiting)} "
            f"| {_description(hints[field.name])} |"
            for field in dataclasses.fields(record)
        ]
        head = f"### {record.__name__}\n\n{inspect.getdoc(record)}\n\n| key | is | means |\n"
        return head + "| --- | --- | --- |\n" + "\n".join(rows) + "\n"

    def _of(self, hint: Any, waiting: list[type]) -> str:  # noqa: ANN401 - any type
        """Say what a value is; what it consists of is explained after what waits."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            return self._of(arguments[0], waiting)
        if origin in (types.UnionType, typing.Union):
            return self._of_union(arguments, waiting)
        if origin is tuple:
            first = self._of(arguments[0], waiting)
            return f"list of {first}" if arguments[-1] is ... else f"pair of {first}s"
        if origin is dict:
            key, value = (self._of(part, waiting) for part in arguments)
            return f"object: {'string' if key == 'number' else key} to {value}"
        if origin is typing.Literal:
            return " or ".join(f"`{word}`" for word in arguments)
        return self._of_type(hint, waiting)

    def _of_union(self, parts: tuple[Any, ...], waiting: list[type]) -> str:
        is_absent, plain = (
            msgspec.UnsetType in parts,
            [p for p in parts if p is not msgspec.UnsetType],
        )
        words = " or ".join(self._of(part, waiting) for part in plain)
        return f"{words}; may be absent" if is_absent else words

    def _of_type(self, kind: type, waiting: list[type]) -> str:
        plain = {int: "number", str: "string", bool: "true or false", type(None): "null"}
        if kind is float:
            return "number, not always an integer"
        if kind in plain:
            return plain[kind]
        if issubclass(kind, enum.IntEnum):
            return "number"
        if issubclass(kind, enum.Enum):
            self._words[kind.__name__] = kind
        else:
            waiting.append(kind)
        return f"[{kind.__name__}](#{kind.__name__.lower()})"


def _description(hint: Any) -> str:  # noqa: ANN401 - any type
    described = (
        part.description for part in typing.get_args(hint) if isinstance(part, msgspec.Meta)
    )
    return next(described, None) or ""


if __name__ == "__main__":
    PLACE.write_text(render(), encoding="utf-8")
