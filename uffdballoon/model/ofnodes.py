# SPDX-License-Identifier: GPL-2.0-or-later
"""What is agreed for one NUMA node of the guest, as people write it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from uffdballoon.errors import UsageError
from uffdballoon.model.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_OF_NODE = re.compile(r"\s*(\d{1,3})\s*=(.*)", re.ASCII | re.DOTALL)
_NODE = re.compile(r"\s*(\d{1,3})\s*", re.ASCII)
MOST_NODES = 128
"""As QEMU has at most (MAX_NODES, include/system/numa.h)."""


def parse_of_node(text: str, parse: Callable[[str], int]) -> tuple[int, int]:
    """Read ``N=VALUE``: a node, and what ``parse`` makes of the value; raise UsageError."""
    match = _OF_NODE.fullmatch(text)
    if match is None or int(match[1]) >= MOST_NODES:
        raise UsageError(
            f"{text!r} does not say what holds for a node",
            why=f"that is the number of a NUMA node of the guest, below {MOST_NODES}, and a value",
            hint="write it like 1=512M",
        )
    return int(match[1]), parse(match[2])


def parse_node_part(text: str) -> tuple[int, int | None]:
    """Read ``N`` or ``N=SIZE``: a node, and how much of it, None for all; raise UsageError."""
    if "=" in text:
        return parse_of_node(text, parse_size)
    match = _NODE.fullmatch(text)
    if match is None or int(match[1]) >= MOST_NODES:
        raise UsageError(
            f"{text!r} is no node",
            why=f"a node is the number of a NUMA node of the guest, below {MOST_NODES}",
            hint="write it like 1, or 1=512M for a part of it",
        )
    return int(match[1]), None


def refuse_twice(option: str, given: Iterable[tuple[int, object]]) -> None:
    """Raise UsageError when a node is named more than once."""
    nodes = [node for node, _ in given]
    for node in nodes:
        if nodes.count(node) > 1:
            raise UsageError(
                f"{option} was given twice for node {node}",
                why="one of the two would not hold",
                hint="give it once a node",
            )
