# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor's bytes as messages: one JSON object a line. Pure: it reads nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uffdballoon.errors import QmpError
from uffdballoon.model.records.encoding import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES = 10 << 20
"""Of one line. The longest answers, of `info mtree` and `info qtree`, have some 100 KiB."""


class LineSplitter:
    """Cuts a stream of bytes into lines, however they come."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._begun = bytearray()

    @property
    def is_within_line(self) -> bool:
        return bool(self._begun)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that ``data`` completes, without their ends.

        Raises QmpError for a line that is too long, whether or not its end has come.
        """
        *completed, rest = data.split(b"\n")
        for end in completed:
            self._add(end)
            line = bytes(self._begun)
            self._begun.clear()
            yield line
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        if len(self._begun) + len(piece) > self._most_bytes:
            raise QmpError(
                "the monitor's answer is not understood",
                why=f"it sent a line of more than {self._most_bytes} bytes",
                hint="is this QEMU's -qmp socket?",
            )
        self._begun += piece


def read_message(line: bytes) -> dict[str, Any]:
    """Read one line; raise QmpError for what is no JSON object."""
    try:
        message = parse(line.decode())
    except (ValueError, RecursionError) as error:
        raise _no_message(f"it is no JSON ({error})") from error
    if not isinstance(message, dict):
        raise _no_message("it is no JSON object")
    return message


def read_answer(message: dict[str, Any], command: str) -> Any:  # noqa: ANN401 - it is JSON
    """Return what a command returned; raise QmpError for a refusal, and for what is neither."""
    if "return" in message:
        return message["return"]
    error = message.get("error")
    said = error.get("desc") if isinstance(error, dict) else None
    if not isinstance(said, str):
        raise _no_message("it has neither a result nor an error")
    raise refused(command, _one_line(said), "this QEMU may be too old, or built without it")


def refused(command: str, why: str, hint: str) -> QmpError:
    return QmpError(f"the monitor refused {command}", why=why, hint=hint)


def _no_message(why: str) -> QmpError:
    return QmpError(
        "the monitor's answer is not understood",
        why=_one_line(why),
        hint="is this QEMU's -qmp socket?",
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
