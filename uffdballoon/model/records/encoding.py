# SPDX-License-Identifier: GPL-2.0-or-later
"""Records as JSON, and JSON as records: nothing else here makes or reads it.

The text is ASCII, as a path that is no UTF-8 must get through, too: Python holds it by
surrogates (PEP 383), which only an escape can carry.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from uffdballoon.errors import ControlError

T = TypeVar("T")


def to_json(value: object, *, indent: int | None = None) -> str:
    """Write a record, or what holds records; without ``indent`` in one line."""
    return json.dumps(_builtins(value), indent=indent)


def to_line(value: object) -> bytes:
    """Write it as a line of the control protocol, without a needless byte."""
    return json.dumps(_builtins(value), separators=(",", ":")).encode() + b"\n"


def parse(text: str | bytes) -> Any:  # noqa: ANN401 - whatever it is
    """Read JSON that may be anything; raise ValueError, or RecursionError where it is too deep."""
    return json.loads(text)


def read(value: object, shape: type[T]) -> T:
    """Make a record of parsed JSON; keys that it does not know are left out.

    Raises ControlError for a value that does not fit, as of an enumeration's from a later version.
    """
    try:
        return msgspec.convert(value, shape, str_keys=True)
    except msgspec.ValidationError as error:
        raise ControlError(
            "the manager speaks of something that is not known here",
            why=f"it is of another version: {error}",
            hint="use the same uffdballoon for the manager and the verb",
        ) from error


def _builtins(value: object) -> object:
    return msgspec.to_builtins(value, str_keys=True)
