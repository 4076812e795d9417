# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts of others, such as a guest's name, as a terminal may be shown them."""

from __future__ import annotations

_MOST_CHARACTERS = 64


def printable(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Escape what does not print, as Python writes it, and cut it to ``most`` characters.

    A backslash is doubled, so that two texts look the same only where both were cut. What
    turns the direction of writing does not print, nor does a byte that was no UTF-8.
    """
    parts: list[str] = []
    left = most
    for character in text[: most + 1]:
        shown = character if character.isprintable() and character != "\\" else _escape(character)
        if len(shown) > left:
            return "".join(parts) + "..."
        parts.append(shown)
        left -= len(shown)
    return "".join(parts)


def one_line(text: str) -> str:
    """Escape what does not print in a sentence that may quote others; what does is kept."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
