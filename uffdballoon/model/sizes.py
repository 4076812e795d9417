# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and addresses as people write them."""

from __future__ import annotations

import re

from uffdballoon.errors import UsageError

_SIZE = re.compile(r"(?P<number>\d{1,30}(?:\.\d{1,30})?)\s*(?P<unit>[a-zA-Z]*)", re.ASCII)
_HEXADECIMAL = re.compile(r"0x(?P<digits>[0-9a-fA-F]{1,30})", re.ASCII | re.IGNORECASE)
_UNITS = {
    "": 0,
    "b": 0,
    **{
        prefix + suffix: 10 * power
        for power, prefix in enumerate("kmgtp", start=1)
        for suffix in ("", "i", "b", "ib")
    },
}
_MAX_BYTES = 1 << 62
_UNIT_STEP = 1024


def parse_size(text: str) -> int:
    """Read a size such as ``64M``, ``1.5GiB``, ``64Mi``, ``4096`` or ``0x1000``.

    Units are powers of 1024; a hexadecimal number is of bytes.

    Returns bytes. Raises UsageError when it is no size, is not a whole number
    of bytes, or is larger than any address space.
    """
    hexadecimal = _HEXADECIMAL.fullmatch(text.strip())
    if hexadecimal:
        return _refuse_too_large(int(hexadecimal["digits"], 16), text)
    match = _SIZE.fullmatch(text.strip())
    shift = _UNITS.get(match["unit"].lower()) if match else None
    if match is None or shift is None:
        raise UsageError(
            f"{text!r} is not a size",
            why="a size is a number and an optional unit, or hexadecimal with 0x",
            hint="write it like 4096, 0x1000, 64K, 512M, 1.5G or 2GiB",
        )
    whole, _, fraction = match["number"].partition(".")
    scaled = int(whole + fraction) << shift
    denominator: int = 10 ** len(fraction)
    size_bytes, rest = divmod(scaled, denominator)
    if rest:
        raise UsageError(
            f"{text!r} is not a whole number of bytes",
            why="the fraction does not come out even in this unit",
            hint="use a smaller unit",
        )
    return _refuse_too_large(size_bytes, text)


def _refuse_too_large(size_bytes: int, text: str) -> int:
    if size_bytes > _MAX_BYTES:
        raise UsageError(
            f"{text!r} is too large",
            why="no address space holds it",
            hint="check the unit",
        )
    return size_bytes


def parse_address(text: str) -> int:
    """Read an address, hexadecimal with 0x or decimal; raise UsageError otherwise."""
    stripped = text.strip().lower()
    hexadecimal = re.fullmatch(r"0x[0-9a-f]{1,16}", stripped)
    if hexadecimal is None and not re.fullmatch(r"\d{1,20}", stripped, re.ASCII):
        raise UsageError(
            f"{text!r} is not an address",
            why="an address is hexadecimal with 0x, or decimal",
            hint="write it like 0x8000000",
        )
    value = int(stripped, 16 if hexadecimal else 10)
    if value > _MAX_BYTES:
        raise UsageError(
            f"{text!r} is no guest address",
            why="it is beyond any guest's memory",
            hint="`uffdballoon inspect PID` lists the guest's RAM",
        )
    return value


def format_size(size_bytes: int) -> str:
    """Write bytes for a person: exact where a unit fits, else one decimal."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        # By what is written: 1023.96 KiB would be 1024.0 KiB, and is 1.0 MiB.
        if abs(round(value, 1)) < _UNIT_STEP or unit == "TiB":
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= _UNIT_STEP
    raise AssertionError("unreachable")
