# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories of a contract: six bytes that say the terms, then three bytes a step.

``histories.c`` plays many of them at once by the C code; here they are played by the reference.
Both tell the same bytes of a history: a verdict a touch, then how many pages are ballooned at
its end, and how many of those are of node 0.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.contract import Contract
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Role, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD_BYTES = 6
STEP_BYTES = 3

_PAGES = 96  # more than a word of the ledger
_FIRST_PAGES = 40  # of node 0; the others are of node 1
_ROLES = (Role.VCPU, Role.HOST_READER, Role.DEVICE_WRITER)
_VERDICTS = {Verdict.ORDINARY: 0, Verdict.GRANTED: 1, Verdict.VIOLATION: 2}
_SOURCE = Path(__file__).with_name("histories.c")
_NATIVE = Path(__file__).parents[2] / "native"


def build_player(directory: Path) -> Path:
    """Compile the C player with the sources that it plays by."""
    binary = directory / "histories"
    parts = ("contract.c", "ledger.c", "unit_counts.c")
    sources = [_SOURCE, *(_NATIVE / "src" / part for part in parts)]
    options = ["-std=c11", "-O2", "-Wall", "-Werror", "-D_GNU_SOURCE=", f"-I{_NATIVE / 'include'}"]
    subprocess.run(["gcc", *options, "-o", str(binary), *map(str, sources)], check=True)
    return binary


def play_by_c(player: Path, histories: Iterable[bytes]) -> bytes:
    """Return what the C code makes of the histories, one after the other."""
    told = b"".join(len(history).to_bytes(2, "little") + history for history in histories)
    return subprocess.run([str(player)], input=told, stdout=subprocess.PIPE, check=True).stdout


def play_by_reference(history: bytes) -> bytes:
    contract = Contract(_terms(history), node_of=_node_of)
    told, now_ns = bytearray(), 1
    for at in range(HEAD_BYTES, len(history) - STEP_BYTES + 1, STEP_BYTES):
        what, page, more = history[at] % 8, history[at + 1] % _PAGES, history[at + 2]
        pages = range(page, page + 1 + more % min(16, _PAGES - page))
        now_ns += more
        if what < 2:
            contract.inflate(pages)
        elif what == 2:
            contract.deflate(pages)
        elif what == 3 and more % 4 == 0:
            contract.reset(now_ns)
        else:
            verdict = contract.touch(page, _ROLES[more % len(_ROLES)], now_ns)
            told.append(_VERDICTS[verdict])
    told += bytes((contract.ballooned_bytes // PAGE_BYTES, contract.node_bytes(0) // PAGE_BYTES))
    return bytes(told)


def _node_of(page: int) -> int:
    return int(page >= _FIRST_PAGES)


def _terms(history: bytes) -> Terms:
    kind, floor_pages, grace_ns, grace_pages, *node_floors = history[:HEAD_BYTES]
    if kind % 3 == 0:
        return Terms()
    return Terms(
        kind=ContractKind.CAP,
        floor_bytes=floor_pages % 40 * PAGE_BYTES,
        grace_ns=grace_ns * 4,
        grace_bytes=grace_pages % 8 * PAGE_BYTES,
        node_floors=tuple(
            (node, pages % 12 * PAGE_BYTES) for node, pages in enumerate(node_floors) if pages % 12
        ),
    )
