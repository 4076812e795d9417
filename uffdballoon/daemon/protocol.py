# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes over the control socket: a line of JSON each way.

A request is ``{"v": 1, "verb": ..., ...}``; the answer ``{"ok": true,
"result": ...}`` or ``{"ok": false, "error": {...}}``. After ``follow`` lines
of events come until either side hangs up. A request with ``"progress": true`` that takes
a while is told each second that it is under way: ``{"progress": true}``.
"""

from __future__ import annotations

import json
from typing import Any

from uffdballoon import errors
from uffdballoon.errors import ControlError, UffdballoonError

VERSION = 1
MAX_LINE_BYTES = 64 << 10
MAX_ANSWER_BYTES = 64 << 20


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


PROGRESS = encode({"progress": True})
"""What is told each second to who waits, and asked for it."""


def decode_request(line: bytes) -> dict[str, Any]:
    """Read a request; raise ControlError for anything that is none."""
    try:
        message = json.loads(line)
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


def error_message(error: UffdballoonError) -> dict[str, Any]:
    return {
        "ok": False,
        "error": {
            "name": type(error).__name__,
            "what": error.what,
            "why": error.why,
            "hint": error.hint,
            "pid": error.pid,
            "errno": error.errno,
        },
    }


def raise_remote(message: dict[str, Any]) -> None:
    """Raise here what the manager refused with, under its own name."""
    fields = message.get("error")
    fields = fields if isinstance(fields, dict) else {}
    pid, number = fields.get("pid"), fields.get("errno")
    kind = getattr(errors, str(fields.get("name")), ControlError)
    if not (isinstance(kind, type) and issubclass(kind, UffdballoonError)):
        kind = ControlError
    raise kind(
        str(fields.get("what", "the manager refused")),
        why=str(fields.get("why", "")),
        hint=str(fields.get("hint", "")),
        pid=pid if isinstance(pid, int) else None,
        errno=number if isinstance(number, int) else None,
    )


def decode_event(line: bytes) -> dict[str, Any]:
    """Read a line of a manager's; raise ControlError for anything that is no object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError("that is no answer", why=f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ControlError("that is no answer", why="it is no object")
    return message


def decode_answer(line: bytes) -> Any:  # noqa: ANN401 - the verb's own
    """Read an answer; raise what it refuses with, or ControlError for anything that is none."""
    message = decode_event(line)
    if message.get("ok") is not True:
        raise_remote(message)
    return message.get("result")
