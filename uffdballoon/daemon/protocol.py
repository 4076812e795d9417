# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes over the control socket: a line of JSON each way.

A request is ``{"v": 1, "verb": ..., ...}``; the answer ``{"ok": true,
"result": ...}`` or ``{"ok": false, "error": {...}}``. After ``follow`` lines
of events come, the last ones past first, until either side hangs up. A request with
``"progress": true`` that takes a while is told each second that it is under way:
``{"progress": true}``.
"""

from __future__ import annotations

from typing import Any, TypeVar

from uffdballoon import errors
from uffdballoon.errors import ControlError, UffdballoonError
from uffdballoon.model.records.changes import Refusal
from uffdballoon.model.records.encoding import parse, read, to_line

T = TypeVar("T")

VERSION = 1
MAX_LINE_BYTES = 64 << 10
MAX_ANSWER_BYTES = 64 << 20


def encode(message: object) -> bytes:
    """Write a request, an answer or an event as a line."""
    return to_line(message)


PROGRESS = encode({"progress": True})
"""What is told each second to who waits, and asked for it."""


def decode_request(line: bytes) -> dict[str, Any]:
    """Read a request; raise ControlError for anything that is none."""
    try:
        message = parse(line)
    except (ValueError, RecursionError) as error:
        raise ControlError("that is no request", why=f"not JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("verb"), str):
        raise ControlError("that is no request", why="it has no verb")
    if message.get("v") != VERSION:
        raise ControlError(
            "that request is of another version",
            why=f"this manager speaks version {VERSION}",
            hint="use the same uffdballoon for the manager and the verb",
        )
    return message


def is_progress(line: bytes) -> bool:
    """Tell whether a line says no more than that a request is under way."""
    return line == PROGRESS


def error_message(error: UffdballoonError) -> dict[str, object]:
    refusal = Refusal(
        name=type(error).__name__,
        what=error.what,
        why=error.why,
        hint=error.hint,
        pid=error.pid,
        errno=error.errno,
    )
    return {"ok": False, "error": refusal}


def raise_remote(told: object) -> None:
    """Raise here what the manager refused with, under its own name."""
    refusal = read(told, Refusal) if told is not None else Refusal()
    kind = getattr(errors, refusal.name, ControlError)
    if not (isinstance(kind, type) and issubclass(kind, UffdballoonError)):
        kind = ControlError
    raise kind(
        refusal.what,
        why=refusal.why,
        hint=refusal.hint,
        pid=refusal.pid,
        errno=refusal.errno,
    )


def decode_object(line: bytes) -> dict[str, object]:
    """Read a line of a manager's; raise ControlError for anything that is no object."""
    try:
        message = parse(line)
    except (ValueError, RecursionError) as error:
        raise ControlError("that is no answer", why=f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ControlError("that is no answer", why="it is no object")
    return message


def decode_answer(line: bytes, shape: type[T]) -> T:
    """Read an answer; raise what it refuses with, or ControlError for anything that is none."""
    message = decode_object(line)
    if message.get("ok") is not True:
        raise_remote(message.get("error"))
    return read(message.get("result"), shape)
